import copy
import json
import math

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning.check import describe, difference, synthesise
from lighten.utils.clone import clone

CALL = (
    (torch.rand(2, 3), [torch.tensor([3, 9]), (None, 2.5)]),
    {"mask": torch.ones(2, dtype=torch.bool), "names": {"a": torch.zeros(1, dtype=torch.float16)}},
)


def test_a_description_survives_json_and_gives_a_like_call():
    description = json.loads(json.dumps(describe(CALL)))
    args, kwargs = synthesise(description, torch.device("cpu"), torch.float64)
    assert args[0].shape == (2, 3)
    assert args[0].dtype == kwargs["names"]["a"].dtype == torch.float64
    ids, pair = args[1]
    assert ids.dtype == torch.int64
    assert set(ids.tolist()) <= set(range(3, 10))
    assert pair == (None, 2.5)
    assert kwargs["mask"].dtype == torch.bool
    assert kwargs["mask"].all()


def test_what_cannot_be_described_is_refused():
    with pytest.raises(UserError, match="holds a object"):
        describe(((object(),), {}))


def example(*shape):
    return describe(((torch.rand(*shape),), {}))


def test_difference_is_relative_to_the_largest_output():
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = torch.tensor([[100.0, 0, 0, 0], [0, 0, 0, 0]])
    other = copy.deepcopy(model)
    other.weight.data *= 1.01
    assert difference(model, other, example(64, 4), dtype=torch.float64) == pytest.approx(0.01, rel=1e-5)
    assert difference(model, model, example(64, 4), dtype=torch.float64) == 0


@pytest.mark.parametrize("other", [nn.Linear(4, 3), nn.Flatten(0)], ids=["wider", "flat"])
def test_other_shapes_are_infinitely_far(other):
    assert difference(nn.Linear(4, 2), other, example(2, 4), dtype=torch.float64) == float("inf")


def test_a_nan_on_one_side_alone_is_a_difference():
    model, broken = nn.Linear(2, 2), nn.Linear(2, 2)
    broken.load_state_dict(model.state_dict())
    broken.bias.data[0] = torch.nan
    assert not difference(model, broken, example(1, 2), dtype=torch.float64) <= 1e9


def test_of_a_nan_on_both_sides_nothing_can_be_said():
    broken = nn.Linear(2, 2)
    broken.bias.data[0] = torch.nan
    assert math.isnan(difference(broken, broken, example(1, 2), dtype=torch.float64))


def test_both_models_draw_the_same_noise_and_see_the_same_input():
    class Noisy(nn.Module):
        def forward(self, x):
            return x.mul_(2) + torch.rand_like(x)

    described = example(3)
    before = torch.get_rng_state()
    assert difference(Noisy(), Noisy(), described, dtype=torch.float64) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_clone_takes_no_trainer_and_no_gradients():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    model._trainer = trainer = [model]
    copied = clone(model)
    assert copied._trainer is None
    assert all(p.grad is None for p in copied.parameters())
    assert model._trainer is trainer
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(copied.weight, model.weight)
    assert copied.weight is not model.weight
