"""Where rounding decides what a network puts out, random weights tell whether a cut is right."""

import pytest
import torch
from torch import nn

from lighten.pruning import plan_pruning, shrink
from lighten.pruning.check import describe
from lighten.pruning.plan import Cut, Plan
from lighten.pruning.rounding import randomise_, rounding_shows


class Chooses(nn.Module):
    """Puts out one of two answers, by two scores that are equal but for the order in which their terms are added."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(8, 32), nn.Linear(32, 2)
        self.one, self.two = nn.Linear(32, 1, bias=False), nn.Parameter(torch.empty(32))
        self.two.data.copy_(self.one.weight[0])

    def forward(self, x):
        h = self.a(x)
        first = self.one(h) > (h * self.two).sum(-1, keepdim=True)
        answer = self.head(h)
        return torch.where(first, answer, -answer)


@pytest.fixture
def batch():
    return torch.rand(64, 8)


def test_it_is_seen_that_rounding_shows(batch):
    model = Chooses()
    example = describe(((batch,), {}))
    assert rounding_shows(model, example, torch.float64, 1e-9)
    randomise_(model, (), torch.Generator().manual_seed(0))
    assert not rounding_shows(model, example, torch.float64, 1e-9)


def test_an_equal_cut_is_not_refused_over_rounding(batch):
    model = Chooses()
    small = shrink(model, plan_pruning(model, batch, 0.5))
    assert small.a.out_features == 16


def test_a_wrong_cut_is_refused_over_its_random_weights(batch):
    model = Chooses()
    plan = plan_pruning(model, batch, 0.5)
    cuts = []
    for cut in plan.cuts:
        last = tuple(slot for slot in cut.slots if slot.tensor == "head.weight")
        others = tuple(slot for slot in cut.slots if slot not in last)
        shifted = tuple(sorted((place + 1) % cut.size for place in cut.removed))
        cuts += [Cut(cut.size, cut.removed, others), Cut(cut.size, shifted, last)] if last else [cut]
    wrong = Plan(plan.groups, tuple(cuts), {}, {}, {}, plan.example)
    with pytest.raises(RuntimeError, match="would change the network"):
        shrink(model, wrong)
