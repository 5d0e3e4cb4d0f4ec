"""Copies of modules that copy.deepcopy refuses, and what the copy holds."""

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from lighten.errors import UserError
from lighten.utils.clone import clone


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.places: dict = {}
        self.thing = SimpleNamespace(deep=None)

    def forward(self, x):
        self.features = self.layer(x)
        self.places["list"] = [self.features, (self.features.relu(),)]
        self.thing.deep = {"x": self.features.sum()}
        return self.features


def test_what_a_forward_has_kept_is_copied_without_its_history():
    model = Keeps()
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    copied = clone(model)
    assert copied.features is copied.places["list"][0]  # one tensor stays one
    for theirs, ours in (
        (copied.features, model.features),
        (copied.places["list"][1][0], model.places["list"][1][0]),
        (copied.thing.deep["x"], model.thing.deep["x"]),
    ):
        assert torch.equal(theirs, ours)
        assert theirs.data_ptr() != ours.data_ptr()
        assert not theirs.requires_grad
    assert copied.layer.weight.grad is None
    assert model.layer.weight.grad is not None
    assert model.features.grad_fn is not None


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "change", [masked, weight_norm, spectral_norm, orthogonal, nn.utils.weight_norm, nn.utils.spectral_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_with_computed_weights_are_copied_and_stay_independent(change):
    model = nn.Sequential(change(nn.Linear(4, 4)))
    x = torch.randn(3, 4)
    model(x).sum().backward()
    copied = clone(model).eval()
    model.eval()
    expected = model(x)
    assert torch.equal(copied(x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(model(x), expected)


def test_tensors_that_a_validation_has_kept_are_copied():
    model = Keeps()
    with torch.inference_mode():
        model(torch.ones(2, 4))
    assert torch.equal(clone(model).features, model.features)


def test_ties_stay_ties():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    copied = clone(model)
    assert copied[1].weight is copied[0].weight is not model[0].weight


def test_a_module_that_refuses_is_said_in_one_line():
    class Alone(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of me")

    with pytest.raises(UserError, match=r"Sequential cannot be copied \(there is one of me\)"):
        clone(nn.Sequential(Alone(2, 2)))


def test_what_cannot_be_copied_is_shared():
    net = nn.Linear(2, 2)
    net.lock, net.kept = threading.Lock(), {"lock": threading.Lock(), "list": [1]}
    copied = clone(net)
    assert copied.lock is net.lock
    assert copied.kept["lock"] is net.kept["lock"]
    assert copied.kept["list"] == [1]
    assert copied.kept["list"] is not net.kept["list"]


def test_hooks_that_close_over_the_model_speak_of_the_copy():
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.seen = nn.Linear(2, 2), []
            self.a.register_forward_hook(lambda *_: self.seen.append(1))

    net = Hooked()
    copied = clone(net)
    copied.a(torch.ones(1, 2))
    assert (net.seen, copied.seen) == ([], [1])


def test_shared_weights_lie_where_the_models_do_until_they_get_other_data():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.append(model[0])
    model[0].bias.requires_grad_(False)
    copied = clone(model, share_weights=True)
    assert copied[0].weight is not model[0].weight
    assert copied[0].weight is copied[2].weight
    assert not copied[0].bias.requires_grad
    assert copied[0].weight.data_ptr() == model[0].weight.data_ptr()
    copied[0].weight.data = copied[0].weight.data[:1]
    copied[1](torch.ones(2, 3))
    assert model[0].weight.shape == (3, 3)
    assert model[1].num_batches_tracked == 0
