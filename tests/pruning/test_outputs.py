"""What modules without weights compute goes with the channels that it meets: sines of positions, in place of DETR's."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import assert_right
from torch import nn

import lighten
from lighten.pruning import mask_, plan_pruning, shrink


class Sines(nn.Module):
    """Positions as (1, length, width): their values depend on the width, and no weight says it."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, length, device):
        step = torch.arange(length, device=device)[:, None] / 10 ** (
            torch.arange(self.width, device=device) / self.width
        )
        return torch.cat([step[:, ::2].sin(), step[:, 1::2].cos()], 1)[None]


class Encoder(nn.Module):
    """Tokens with positions, which are added to what a layer reads; ``twice`` reads them of another length, too."""

    def __init__(self, width=12, twice=False):
        super().__init__()
        self.positions, self.twice = Sines(width), twice
        self.a, self.b, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x + self.b(x + self.positions(x.shape[1], x.device))
        if self.twice:
            x = x[:, ::2]
            x = F.relu(x + self.positions(x.shape[1], x.device))
        return self.head(x)


@pytest.fixture
def x():
    return torch.rand(2, 7, 6)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_sines_are_narrowed_with_the_channels_that_they_are_added_to(x, twice):
    torch.manual_seed(0)
    model = Encoder(twice=twice).eval()
    plan = assert_right(model, x)
    assert plan.widths["a"] == plan.widths["b"] == (12, 6)
    (kept,) = {row.kept for row in plan.groups}
    small = shrink(model, plan)
    assert isinstance(small.positions, Sines)
    torch.testing.assert_close(small.positions(7, "cpu"), model.positions(7, "cpu")[..., list(kept)], rtol=0, atol=0)


def test_masked_is_cut_in_float64(x):
    torch.manual_seed(0)
    model = Encoder().double().eval()
    plan = plan_pruning(model, x.double(), 0.5)
    small = shrink(model, plan)
    mask_(model, plan)
    torch.testing.assert_close(small(x.double()), model(x.double()), rtol=0, atol=1e-12)


def test_what_is_narrowed_is_copied_pickled_saved_and_pruned_again(x, tmp_path):
    torch.manual_seed(0)
    model = Encoder().eval()
    small = shrink(model, plan_pruning(model, x, 0.5)).eval()
    again = shrink(small, plan_pruning(small, x, 0.5)).eval()
    assert again.positions(7, "cpu").shape == (1, 7, 3)
    for each in (small, again):
        for other in (copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert torch.equal(other(x), each(x))
        exported = torch.export.export(each, (x,)).module()
        torch.testing.assert_close(exported(x), each(x))


def test_a_plan_of_two_cuts_rebuilds_it(x):
    torch.manual_seed(0)
    model = Encoder().eval()
    small = shrink(model, plan_pruning(model, x, 0.5))
    again = shrink(small, plan_pruning(small, x, 0.5)).eval()
    plan = lighten.Plan.from_json(again.lighten_record.plan.to_json())
    assert torch.equal(shrink(model, plan)(x), again(x))


class Meets(Encoder):
    """A body of its own between two layers."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.head(self.body(F.relu(self.a(x)), self.positions(x.shape[1], x.device)))


@pytest.mark.parametrize(
    "body",
    [
        lambda x, p: x * p.sum(-1, keepdim=True),
        lambda x, p: x[..., :7] @ p,
        lambda x, p: p + x.mean(-1, keepdim=True),
    ],
    ids=["summed", "multiplied", "spread"],
)
def test_sines_that_meet_otherwise_stay_as_they_are(x, body):
    """Nothing is cut that is not right; what is summed over its width keeps that."""
    torch.manual_seed(0)
    model = Meets(body).eval()
    try:
        plan = plan_pruning(model, x, 0.5)
    except lighten.UserError:
        return
    small = shrink(model, plan)
    mask_(model, plan)
    torch.testing.assert_close(small(x), model(x))


def test_what_is_computed_of_activations_is_no_output_of_its_own(x):
    """A module without weights that is given activations passes their channels on, as before."""

    class Doubled(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[-1])

    model = nn.Sequential(nn.Linear(6, 8), Doubled(), nn.Linear(8, 2)).eval()
    with pytest.raises(lighten.UserError, match="is tied to what arange makes"):
        plan_pruning(model, x, 0.5)
