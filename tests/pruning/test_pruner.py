"""The pruner in a loop of one's own, without a trainer."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lighten.errors import UserError
from lighten.pruning import shrink
from lighten.pruning.planner import trace_structure
from lighten.pruning.pruner import Pruner
from lighten.pruning.settings import Settings

LABELS = torch.tensor([0, 1])


def pruner_of(model, images, amount=0.5, *, exclude=(), **options):
    settings = Settings(amount, **{key: options.pop(key) for key in ("score", "scope") if key in options})
    return Pruner(model, trace_structure(model, ((images,), {}), exclude=exclude), settings, **options)


def step(model, images, optimizer, pruner):
    optimizer.zero_grad()
    F.cross_entropy(model(images), LABELS).backward()
    pruner.accumulate_gradients()
    optimizer.step()


def zeros(model):
    return frozenset((model.a1[0].weight == 0).flatten(1).all(1).nonzero().flatten().tolist())


def test_a_loop_of_ones_own_ends_with_a_model_that_shrinks(build, images):
    model = build("residual")
    pruner = pruner_of(model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert (pruner.plan.sparsity, pruner.ramp, pruner.active) == (0.0, 0.0, False)
    pruner.mask()
    gone = zeros(model)
    for ramp in (0.25, 0.5, 1.0):
        step(model, images, optimizer, pruner)
        pruner.update(ramp, final=ramp == 1.0)
        assert pruner.ramp == ramp
        assert gone <= zeros(model)
        gone = zeros(model)
        step(model, images, optimizer, pruner)
        assert gone != zeros(model)  # momentum has revived them
        pruner.zero()
        assert gone == zeros(model)
    assert pruner.plan.sparsity == 0.5
    small = shrink(model.eval(), pruner.plan)
    with torch.no_grad():
        assert torch.allclose(small(images), model(images), atol=1e-5)


def test_soft_filters_grow_until_the_final_update(build, images):
    model = build("residual")
    pruner = pruner_of(model, images, soft=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.update(1.0, final=False)
    assert len(zeros(model)) == 4
    step(model, images, optimizer, pruner)
    pruner.zero()
    assert len(zeros(model)) < 4
    pruner.update(1.0, final=True)
    step(model, images, optimizer, pruner)
    pruner.zero()
    assert len(zeros(model)) == 4


@pytest.mark.parametrize("options", [{"score": "taylor"}, {"scope": "sensitivity"}, {"scope": "global"}], ids=str)
def test_goes_on_from_its_state(options, build, images):
    calibration = [((images,), {})]
    model = build("residual")
    first = pruner_of(model, images, calibration=calibration, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first.mask()
    for ramp in (0.3, 0.6):
        step(model, images, optimizer, first)
        first.update(ramp, final=False)
    step(model, images, optimizer, first)
    state, other = first.state_dict(), build("residual")
    second = pruner_of(other, images, calibration=calibration, **options)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    second.load_state_dict(state, soft=False)
    assert second.state_dict().keys() == state.keys()
    assert second.plan == first.plan
    second.mask()
    for pruner in (first, second):
        pruner.update(1.0, final=True)
    assert second.plan == first.plan


def test_a_state_of_another_model_is_refused(build, images):
    state = pruner_of(build("residual"), images).state_dict()
    other = pruner_of(build("residual"), images, exclude=["stem.0"])
    with pytest.raises(UserError, match="the checkpoint's plan has groups"):
        other.load_state_dict(state, soft=False)


def test_decisions_are_those_that_were_agreed_on(build, images):
    """As on a rank that takes what another one decided."""
    asked = []
    leader = pruner_of(build("residual"), images)

    def agree(before, decide):
        asked.append(before)
        return (leader.preview if len(asked) == 1 else leader.plan), None

    follower = pruner_of(build("residual"), images, agree=agree)
    leader.update(1.0, final=True)
    follower.update(1.0, final=True)
    assert follower.plan is leader.plan
    assert asked[:2] == [None, None]
    assert len(asked) == 3
    assert isinstance(asked[2], str)
