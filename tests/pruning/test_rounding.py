"""Where rounding decides what a network puts out, random weights tell whether a cut is right."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lighten.pruning import cut, plan_pruning, shrink
from lighten.pruning.check import describe
from lighten.pruning.plan import Cut, Plan
from lighten.pruning.rounding import rounding_shows
from lighten.pruning.tensors import randomise_


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
    for one in plan.cuts:
        last = tuple(slot for slot in one.slots if slot.tensor == "head.weight")
        others = tuple(slot for slot in one.slots if slot not in last)
        shifted = tuple(sorted((place + 1) % one.size for place in one.removed))
        cuts += [Cut(one.size, one.removed, others), Cut(one.size, shifted, last)] if last else [one]
    wrong = Plan(plan.groups, tuple(cuts), {}, {}, {}, plan.example)
    with pytest.raises(RuntimeError, match="would change the network"):
        shrink(model, wrong)


@pytest.mark.parametrize("nearly", [1.0 + 2.0**-10, 3.0])
def test_a_gap_in_16_bits_refuses_a_cut_only_where_rounding_does_not_show(batch, monkeypatch, nearly):
    """Two scores that differ by less than bfloat16 can say, and two that differ by far."""
    model = Chooses()
    model.one.weight.data.abs_()
    model.a.weight.data.abs_()
    model.a.bias.data.abs_()
    model.two.data.copy_(nearly * model.one.weight[0])
    plan = plan_pruning(model, batch, 0.5)
    plan = replace(plan, settings={**plan.settings, "precision": "bf16-mixed"})
    gap = cut._gap
    monkeypatch.setattr(cut, "_gap", lambda *given: 0.5 if given[4:] == (torch.bfloat16,) else gap(*given))
    if nearly == 3.0:
        with pytest.raises(RuntimeError, match=r"autocast to torch\.bfloat16"):
            shrink(model, plan)
    else:
        assert shrink(model, plan).a.out_features == 16
