import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning
from lighten.pruning.allocate import Candidate, allocate, pressure
from lighten.pruning.damage import GroupSensitivity
from lighten.pruning.plan import Plan
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.settings import Settings
from lighten.pruning.widths import allocate_widths


@pytest.fixture
def lopsided():
    """Two equal layers side by side, of which the output hardly needs the second."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(32, 5)
            self.head.weight.data[:, 16:] *= 0.01

        def forward(self, x):
            return self.head(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))

    return Net(), torch.randn(64, 12)


@pytest.mark.parametrize("target", ["channels", "macs", "parameters"])
def test_what_is_not_needed_goes(lopsided, target):
    model, inputs = lopsided
    plan = plan_pruning(model, inputs, 0.4, scope="sensitivity", target=target, calibration=[inputs])
    a, b = plan.groups
    assert len(b.removed) > 3 * len(a.removed)
    gone, each = len(a.removed) + len(b.removed), {"channels": 1, "macs": 12 + 5, "parameters": 12 + 1 + 5}[target]
    assert gone == 13  # of 32 channels, each of which saves the same, the nearest to 0.4
    share = gone * each / (32 * each + 5 * (target == "parameters"))
    assert (plan.saved | {"channels": plan.sparsity})[target] == pytest.approx(share, abs=1e-9)


def test_curves_are_the_divergence_of_the_masked_outputs(lopsided):
    """Probed by hand: mask the lowest scores of one group, compare softmaxes."""
    model, inputs = lopsided
    plan = plan_pruning(model, inputs, 0.4, scope="sensitivity", calibration=[inputs[:40], inputs[40:]])
    structure = trace_structure(model, ((inputs,), {}))
    for which, row in enumerate(plan.groups):
        assert row.curve[0] == (0.0, 0.0)
        assert len(row.curve) == 6
        share, damage = row.curve[2]
        lowest = sorted(range(16), key=lambda i: row.scores[i])[: round(share * 16)]
        cuts = structure.cuts([lowest if i == which else [] for i in range(2)])
        masked = copy.deepcopy(model)
        mask_(masked, Plan.of_cuts(cuts, structure.example))
        with torch.no_grad():
            found = []
            for part in (inputs[:40], inputs[40:]):
                p, q = model(part).double().softmax(-1), masked(part).double().softmax(-1)
                found.append(float((p * (p / q).log()).sum(-1).mean()))
        assert damage == pytest.approx(sum(found) / 2, rel=0.01, abs=1e-8)


def test_probing_leaves_no_trace(lopsided):
    model, inputs = lopsided
    model.train()
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    plan_pruning(model, inputs, 0.4, scope="sensitivity", calibration=[inputs])
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_calibration_is_asked_for(lopsided):
    model, inputs = lopsided
    with pytest.raises(UserError, match="scope='sensitivity' needs calibration"):
        plan_pruning(model, inputs, 0.4, scope="sensitivity")
    with pytest.raises(UserError, match="got no calibration input"):
        plan_pruning(model, inputs, 0.4, scope="sensitivity", calibration=[])


def test_the_best_of_all_allocations_is_found():
    """Against every allocation there is: no cheaper one saves as much."""
    curves = [[(i / 10, a * (i / 10) ** b) for i in range(11)] for a, b in ((1.0, 2.0), (0.3, 3.0), (2.0, 1.5))]
    known = [GroupSensitivity(curve, saving) for curve, saving in zip(curves, (0.5, 0.2, 0.3), strict=True)]
    candidates = [Candidate(str(i), torch.rand(10)) for i in range(3)]

    def damage(counts):
        return sum(curve[n][1] for curve, n in zip(curves, counts, strict=True))

    def saved(counts):
        return sum(k.saving * n / 10 for k, n in zip(known, counts, strict=True))

    at = pressure(candidates, "sensitivity", align=1, sensitivities=known)
    grid = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    for p in (0.3, 0.5, 0.7, 0.8):
        counts = at(p)
        best = min(damage(other) for other in grid if saved(other) >= saved(counts) - 1e-9)
        assert damage(counts) <= 1.1 * best + 0.02


def test_pressure_only_ever_rises():
    known = [
        GroupSensitivity([(0.0, 0.0), (0.5, 0.1), (0.9, 0.05)], 0.5),
        GroupSensitivity([(0.0, 0.0), (0.7, 1.0)], 0.1),
    ]
    candidates = [Candidate("a", torch.rand(30)), Candidate("b", torch.rand(20))]
    at = pressure(candidates, "sensitivity", align=1, sensitivities=known)
    steps = [at(p / 50) for p in range(51)]
    assert steps[0] == [0, 0]
    assert steps[-1] == [29, 19]
    for before, after in pairwise(steps):
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_a_ramp_keeps_to_what_was_settled(lopsided):
    model, inputs = lopsided
    settings = Settings(0.4, scope="sensitivity")
    structure = trace_structure(model, ((inputs,), {}))
    allocation = allocate_widths(structure, model, settings, calibration=[((inputs,), {})])
    half = make_plan(structure, model, settings, allocation=allocation, ramp=0.5)
    whole = make_plan(structure, model, settings, allocation=allocation, after=half)
    assert tuple(len(row.removed) for row in whole.groups) == allocation.counts
    assert [len(r.removed) for r in half.groups] == [n // 2 for n in allocation.counts]


def test_a_share_that_cannot_be_reached_says_how_far_one_can_go():
    candidates = [Candidate("a", torch.rand(10)), Candidate("b", torch.rand(10))]
    share = lambda counts: 0.05 * sum(counts)  # noqa: E731
    with pytest.raises(UserError, match=r"amount=0.95 cannot be reached: at most 0.9 goes when each of 2 groups"):
        allocate(candidates, 0.95, share=share)
    with pytest.raises(UserError, match=r"amount=0.95 cannot be reached: at most 0.9"):
        allocate(candidates, 0.95, share=share, scope="global")
    assert sum(map(len, allocate(candidates, 0.6, share=share))) == 12
