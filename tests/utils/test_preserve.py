"""A look at a model leaves nothing behind, whatever its forward does."""

# ruff: noqa: NPY002 (forwards draw from the global state)
import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lighten.utils.preserve import Snapshot, preserved


class Config:
    def __init__(self):
        self.seen, self.lengths = 0, [1]


class Busy(nn.Module):
    """A forward that keeps, counts, caches, installs hooks, draws, and changes its own weights."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.cache, self.calls, self.names, self.config = {"deep": {"list": []}}, 0, {"x"}, Config()
        self.plain = torch.zeros(2)

    def forward(self, x):
        self.calls += 1
        self.names.add("y")
        self.config.seen, self.new = 3, x
        self.config.lengths.append(5)
        self.cache["deep"]["list"].append(x)
        self.cache["out"] = self.norm(self.a(x))
        self.a.register_forward_hook(lambda *_: None)
        self.extra = nn.Linear(1, 1)
        self.plain += 1
        with torch.no_grad():
            self.a.weight.mul_(2)
            self.a.bias.data = torch.ones(4)
        return self.cache["out"] * random.random() * np.random.rand() * torch.rand(())


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("backward", [False, True])
def test_everything_is_as_it_was(backward):
    torch.manual_seed(0)
    model = Busy()
    model.a(torch.ones(1, 4)).sum().backward()
    weights, grads = state_of(model), [p.grad.clone() for p in model.a.parameters()]
    containers = (model.cache, model.cache["deep"]["list"], model.names, model.config.lengths, model._modules)
    contents = copy.deepcopy(containers[:4])
    attributes = dict(model.__dict__)
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    with preserved(model):
        output = model.eval()(torch.ones(3, 4))
        if backward:
            output.sum().backward()

    assert model.training
    assert model.norm.training
    assert model.__dict__ == attributes
    assert [id(c) for c in containers] == [
        id(c) for c in (model.cache, model.cache["deep"]["list"], model.names, model.config.lengths, model._modules)
    ]
    assert containers[:4] == contents
    assert model.config.seen == 0
    assert model.plain.tolist() == [0, 0]
    assert not model.a._forward_hooks
    assert list(model._modules) == ["a", "norm"]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.a.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == draws[1:]


def test_an_error_inside_leaves_nothing_either():
    model = Busy()
    with pytest.raises(RuntimeError, match="shapes"), preserved(model):
        model(torch.ones(3, 5))
    assert (model.calls, model.names) == (0, {"x"})


def test_modules_without_memory_are_looked_at_too():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with preserved(model):
        model(torch.ones(2, 2, device="meta"))
    assert model[0].weight.is_meta


def test_a_set_that_nothing_touched_keeps_its_order():
    module = nn.Identity()
    module.names = set(range(100))
    module.names -= module.names - {3, 8}  # filled anew, it is smaller inside, and walked in another order
    before = list(module.names)
    assert before != list(set(before))
    with preserved(module):
        pass
    assert list(module.names) == before


def test_a_snapshot_without_weights_gives_them_their_place_back_again_and_again():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    place, mean = model[0].weight.data_ptr(), model[1].running_mean.clone()
    found = Snapshot(model, weights=False)
    for _ in range(2):
        model[0].weight.data = torch.zeros(2, 3)
        model[0].out_features = 2
        model[1].running_mean.add_(1)
        model.double()
        found.restore()
        assert (model[0].weight.data_ptr(), model[0].out_features) == (place, 3)
        assert torch.equal(model[1].running_mean, mean)
    model[0].weight.data.zero_()
    found.restore()
    assert not model[0].weight.any()
