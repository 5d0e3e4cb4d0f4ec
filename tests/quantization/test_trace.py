"""Where quantizers belong: locations by name, each tensor once, and why a layer has none."""

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import Residual, lived_in, relative_error
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.table import summary
from lighten.quantization.trace import CallLocations, LayerLocations, place_quantizers
from lighten.utils.inputs import as_call

EXAMPLE = torch.zeros(2, 1, 8, 8)


def test_places_are_the_inputs_and_outputs_of_integer_operations():
    model = quantize_(Residual(), example_input=EXAMPLE)
    assert quantizers_of(model).names == [
        "conv1.input",
        "conv1.output",
        "conv2.output",
        ":add0.output",
        ":pool0.output",
    ]
    assert set(quantizers_of(model).functions.names) == {":relu0", ":add0", ":relu1", ":keep0", ":pool0", ":keep1"}
    assert summary(model) == "3 layers, 5 activations in int8"


def test_what_is_left_out_is_named_with_its_reason():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.first, self.second, self.twice, self.never = (nn.Linear(4, 4) for _ in range(4))
            self.odd = Odd(4, 4)

        def forward(self, x):
            return self.odd(self.twice(self.twice(self.second(self.first(self.norm(self.table(x)))))))

    ids = torch.zeros(2, 3, dtype=torch.long)
    model = quantize_(Net(), example_input=ids, exclude=["Embedding", "sec*"])
    assert quantizers_of(model).left == {
        "odd": "its class has a forward of its own",
        "table": "excluded by 'Embedding'",
        "second": "excluded by 'sec*'",
        "twice": "runs more than once in a forward pass",
        "never": "its forward is not called",
    }
    with pytest.raises(
        UserError, match=r"exclude='LayerNorm': LayerNorm has no int8 form and stays .* anyway"
    ) as caught:
        quantize_(Net(), example_input=ids, exclude=["LayerNorm"])
    assert "\n" not in str(caught.value)
    only = nn.Sequential(nn.Identity(), nn.LayerNorm(4))
    with pytest.raises(UserError, match=r"Sequential has no layer left to quantize; int8 forms have Conv1d to"):
        quantize_(only, example_input=torch.zeros(2, 4))


class Attention(nn.Module):
    """Projections that read one tensor, a residual sum that a layer norm reads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        mixed = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head(self.norm(x + self.out(mixed)).mean(1))


def test_one_tensor_is_quantized_once_and_the_residual_stream_stays_in_floating_point(monkeypatch):
    x = torch.randn(2, 5, 8)
    model = calibrate_(quantize_(Attention(), example_input=x), [x])
    assert quantizers_of(model).names == ["q.input", "out.input", "head.input"]
    calls = []
    from lighten.quantization import quantizer

    plain = quantizer.fake_quantize
    monkeypatch.setattr(quantizer, "fake_quantize", lambda x, *a, **k: calls.append(1) or plain(x, *a, **k))
    model(x).sum().backward()
    assert len(calls) == 3
    assert not quantizers_of(model).shared
    assert torch.equal(convert(model)(x), model(x))


class TwoSums(nn.Module):
    """One norm behind two convolutions, or behind one and a sum."""

    def __init__(self, behind_sum):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.norm, self.head, self.behind_sum = nn.BatchNorm2d(8), nn.Linear(8, 3), behind_sum

    def forward(self, x):
        a = F.relu(self.norm(self.a(x)))
        b = self.b(a) + a if self.behind_sum else self.b(a)
        return self.head(F.relu(self.c(self.norm(b))).mean((2, 3)))


@pytest.mark.parametrize("behind_sum", [False, True])
def test_a_norm_at_two_places_is_computed_at_both(behind_sum):
    model, x = lived_in(TwoSums(behind_sum)), torch.randn(8, 1, 8, 8)
    expected = model(x)
    assert relative_error(calibrate_(quantize_(model, example_input=x[:2]), [x])(x), expected) < 0.05


def placed(model, x, layers, unwatched=()):
    return place_quantizers(model, as_call(x), layers, unwatched)


def test_a_norm_and_a_relu_belong_to_the_layer_before():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    found = placed(model, EXAMPLE, ["0", "3", "5"])
    assert found.locations == ["0.input", "0.output", "3.output"]
    assert found.layers == {
        "0": LayerLocations("0.input", True, "0.output", norm="1", relu=True, relu_module="2"),
        "3": LayerLocations("0.output", False, "3.output"),
        "5": LayerLocations("3.output", False, None),
    }
    assert found.calls == {
        ":relu0": CallLocations({}, "0.output", done=True),
        ":keep0": CallLocations({}, "3.output", keeps=True),
    }
    assert (found.untrained, found.shared, found.left) == (set(), set(), {})


class Sum(nn.Module):
    """Two layers that read one tensor and whose sum a third reads, changed in place or not, in training or not."""

    def __init__(self, *, changes=False, evaluates=False):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)
        self.changes, self.evaluates = changes, evaluates

    def forward(self, x):
        x = torch.sin(x)
        if self.evaluates and self.training:
            return self.head(self.a(x))
        y = F.relu(self.a(x) + self.b(x))
        if self.changes:
            y.clamp_(max=1)
        return self.head(y)


def test_a_sum_is_quantized_with_its_relu_and_a_tensor_that_two_layers_read_once():
    found = placed(Sum(), EXAMPLE, ["a", "b", "head"])
    assert found.locations == ["a.input", "a.output", "b.output", ":add0.output"]
    assert {name: at.input for name, at in found.layers.items()} == {
        "a": "a.input", "b": "a.input", "head": ":add0.output",
    }  # fmt: skip
    assert found.shared == {"a.input"}
    assert found.calls[":add0"] == CallLocations({}, ":add0.output", relu=True)
    assert found.calls[":relu0"] == CallLocations({}, ":add0.output", done=True)


def test_what_a_call_changes_in_place_is_quantized_again_where_it_is_read():
    found = placed(Sum(changes=True), EXAMPLE, ["a", "b", "head"])
    assert found.layers["head"] == LayerLocations("head.input", True, None)
    assert not found.calls


def test_calls_of_an_unwatched_module_stay_in_floating_point():
    found = placed(Sum(), EXAMPLE, ["a", "b", "head"], [""])
    assert not found.calls
    assert found.locations == ["a.input", "a.output", "b.output", "head.input"]


def test_locations_that_training_does_not_reach_are_marked():
    found = placed(Sum(evaluates=True), EXAMPLE, ["a", "b", "head"])
    assert set(found.locations) - found.untrained == {"a.input", "a.output"}
    assert placed(Sum(), EXAMPLE, ["a", "b", "head"]).untrained == set()
