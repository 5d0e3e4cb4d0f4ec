"""Which layers are left in floating point: the ranking against quantizing one layer by hand, the choice against all."""

import copy

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_
from lighten.quantization.sensitivity import find_float_layers


class Net(nn.Module):
    """Linear layers with outliers between the first two: int8 of the second layer's input is coarse."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight[0] *= 500
            self.second.weight[:, 0] /= 500

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(self.second(torch.nn.functional.gelu(self.first(x)))))


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def batches(net):
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(100, 6, generator=generator) for _ in range(3)]
    with torch.no_grad():
        return [(x, net(x).argmax(1)) for x in inputs]  # labels such that floating point is always right


def test_ranking_is_that_of_quantizing_one_layer_by_hand(net, batches):
    found = find_float_layers(net, batches, max_drop=0.5, ranges="min_max", weight_bits=8)
    errors = {}
    with torch.no_grad():
        floating = torch.cat([net(x) for x, _ in batches])
        for name in ("first", "second", "last"):
            others = [other for other in ("first", "second", "last") if other != name]
            alone = quantize_(
                copy.deepcopy(net), example_input=batches[0][0], exclude=others, ranges="min_max", weight_bits=8
            )
            calibrate_(alone, batches)
            logits = torch.cat([alone(x) for x, _ in batches])
            errors[name] = float((logits - floating).square().sum() / floating.square().sum())
    assert {x.name: x.error for x in found.layers} == pytest.approx(errors, rel=0.05)
    assert [x.name for x in found.layers] == sorted(errors, key=errors.get, reverse=True)
    assert found.layers[0].name == "second"
    assert found.baseline == 1
    assert found.samples == 300
    assert found.exclude == []


def test_fewest_layers_are_left_out_that_keep_the_tolerated_drop(net, batches):
    def drop(left):
        model = quantize_(copy.deepcopy(net), example_input=batches[0][0], exclude=left, ranges="mse")
        calibrate_(model, batches)
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in batches])
        return 1 - float(right.double().mean())

    everything = drop([])
    assert everything > 0.02
    found = find_float_layers(net, batches, max_drop=everything / 3)
    assert found.exclude == ["second"]
    assert found.predicted == pytest.approx(drop(["second"]))
    assert found.predicted <= everything / 3
    assert found.as_json()["layers"][0]["kept"] == "float32"


def test_model_is_left_as_it_is(net, batches):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    find_float_layers(net, batches, max_drop=0.5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not hasattr(net, "activation_ranges")


@pytest.mark.parametrize(
    ("data", "drop", "message"),
    [
        ([], 0.01, "at least one batch"),
        ([torch.zeros(2, 6)], 0.01, "without labels"),
        ("all", 1.5, r"max_drop=1\.5: expected a number at least 0 and below 1"),
    ],
)
def test_bad_requests_give_one_line(net, batches, data, drop, message):
    with pytest.raises(UserError, match=message) as caught:
        find_float_layers(net, batches if data == "all" else data, max_drop=drop)
    assert "\n" not in str(caught.value)
