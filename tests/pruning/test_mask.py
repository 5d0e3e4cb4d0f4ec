import copy

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning
from lighten.pruning.mask import Masks


def test_zeroes_exactly_these_places(build, images):
    """Producers, their norms, and what the next layers read; not a value more."""
    model = build("residual-pad")
    plan = plan_pruning(model, images, 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask_(model, plan)
    stem, a1, b1 = (list(row.removed) for row in plan.groups)
    carried = [channel + 4 for channel in stem]
    zero = {
        "stem.0.weight": (stem, []),
        "a1.0.weight": (a1, stem),
        "a2.0.weight": (stem, a1),
        "b1.0.weight": (b1, stem),
        "b2.0.weight": (carried, b1),
        "head.weight": ([], carried),
        **{
            f"{name}.{t}": (gone, [])
            for t in ("weight", "bias")
            for name, gone in (("stem.1", stem), ("a1.1", a1), ("a2.1", stem), ("b1.1", b1), ("b2.1", carried))
        },
    }
    for name, tensor in model.state_dict().items():
        expected = before[name]
        for dim, places in enumerate(zero.get(name, ())):
            if places:
                expected.index_fill_(dim, torch.tensor(places), 0)
        assert torch.equal(tensor, expected), name


def test_masking_twice_is_masking_once(build, images):
    model = build("mobile")
    plan = plan_pruning(model, images, 0.5)
    mask_(model, plan)
    once = copy.deepcopy(model.state_dict())
    mask_(model, plan)
    assert all(torch.equal(once[name], tensor) for name, tensor in model.state_dict().items())


def test_masks_put_the_same_places_to_zero_again(build, images):
    model, other = build("mobile"), build("mobile")
    plan = plan_pruning(model, images, 0.5)
    mask_(other, plan)
    Masks(model, plan).apply_()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_masks_keep_a_nan_visible(build, images):
    model = build("flat")
    masks = Masks(model, plan_pruning(model, images, 0.5))
    with torch.no_grad():
        model.conv.weight.fill_(torch.nan)
    masks.apply_()
    assert model.conv.weight.isnan().all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m, "a", nn.Linear(96, 11)), r"layer 'a' does not match the plan: a.\w+ has shape \(11"),
        (lambda m: delattr(m, "head"), r"layer 'head' does not match the plan: head.weight is missing"),
    ],
)
def test_a_plan_for_another_model_is_refused_by_layer(build, images, change, says):
    model = build("flat")
    plan = plan_pruning(model, images, 0.5)
    change(model)
    with pytest.raises(UserError, match=says):
        mask_(model, plan)


def test_nothing_is_zeroed_where_a_plan_is_refused(build, images):
    model = build("flat")
    plan = plan_pruning(model, images, 0.5)
    model.head = nn.Linear(11, 4)
    before = model.conv.weight.clone()
    with pytest.raises(UserError, match="head"):
        mask_(model, plan)
    assert torch.equal(model.conv.weight, before)
