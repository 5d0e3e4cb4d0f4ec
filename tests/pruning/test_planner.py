import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.score import fpgm, magnitude
from lighten.pruning.settings import Settings
from lighten.pruning.widths import allocate_widths

SETTINGS = Settings(0.5)


@pytest.mark.parametrize(("name", "function"), [("fpgm", fpgm), ("magnitude", magnitude)])
def test_a_group_is_scored_by_all_its_layers_without_the_norms(name, function, build, images):
    model = build("residual")
    row = plan_pruning(model, images, 0.5, score=name).groups[0]
    expected = function(torch.cat([model.stem[0].weight.flatten(1), model.a2[0].weight.flatten(1)], dim=1))
    assert row.scores == pytest.approx(expected.tolist(), rel=1e-6)
    assert row.removed == tuple(sorted(expected.argsort()[:4].tolist()))


def test_only_live_filters_are_ranked(build, images):
    """A removed filter, zero or not, has no say in the distances of the others."""
    model = build("flat")
    structure = trace_structure(model, ((images,), {}))
    first = make_plan(structure, model, SETTINGS, allocation=allocate_widths(structure, model, SETTINGS), ramp=0.5)
    gone = first.groups[0].removed
    assert gone
    mask_(model, first)
    second = make_plan(structure, model, SETTINGS, allocation=allocate_widths(structure, model, SETTINGS), after=first)
    live = [i for i in range(6) if i not in gone]
    alone = fpgm(model.conv.weight.flatten(1)[live])
    assert [second.groups[0].scores[i] for i in live] == pytest.approx(alone.tolist())
    assert set(gone) < set(second.groups[0].removed)
    assert len(second.groups[0].removed) == 3
    assert [second.groups[0].scores[i] for i in gone] == [first.groups[0].scores[i] for i in gone]


def test_deciding_twice_is_deciding_once(build, images):
    model = build("mobile")
    assert plan_pruning(model, images, 0.5) == plan_pruning(model, images, 0.5)


def test_takes_keywords_and_positionals(images):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x, scale=None):
            return self.b(self.a(x) * scale)

    model, scale = Two(), torch.ones(1)
    by_name = plan_pruning(model, {"x": images, "scale": scale}, 0.5)
    assert by_name.hash == plan_pruning(model, (images, scale), 0.5).hash
    assert by_name.widths["a"] == (6, 3)


def test_align_and_scope_reach_the_plan(build, images):
    aligned = plan_pruning(build("residual"), images, 0.4, align=4)
    assert {row.width_after for row in aligned.groups} == {4, 12}
    everywhere = plan_pruning(build("residual"), images, 0.4, scope="global")
    assert sum(len(row.removed) for row in everywhere.groups) == math.ceil(0.4 * 48 - 0.5)
    assert everywhere.settings["scope"] == "global"


@pytest.mark.parametrize("amount", [0.0, 1.0, -0.5, 1.5, math.nan, math.inf, "half", True, None])
def test_amounts_outside_the_interval_are_refused(amount, build, images):
    with pytest.raises(UserError, match=rf"amount={amount!r}: expected a number above 0 and below 1"):
        plan_pruning(build("flat"), images, amount)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"score": "fpgn"}, "score='fpgn': did you mean 'fpgm'"),
        ({"scope": "unform"}, "scope='unform': did you mean 'uniform'"),
        ({"align": 0}, "align=0: expected a whole number"),
        ({"align": 1.5}, "align=1.5: expected a whole number"),
        ({"exclude": ["conf"]}, "exclude='conf' matches no layer; did you mean 'conv'"),
    ],
)
def test_settings_are_checked(settings, says, build, images):
    with pytest.raises(UserError, match=says):
        plan_pruning(build("flat"), images, 0.5, **settings)


def test_an_amount_that_would_empty_a_layer_is_refused(build, images):
    with pytest.raises(UserError, match=r"amount=0.95 would empty conv \(6 channels\); ask for at most 0.91"):
        plan_pruning(build("flat"), images, 0.95)


def test_nothing_to_prune_is_refused_with_the_reason(images):
    with pytest.raises(
        UserError, match=r"Linear has no group of channels that can be pruned: .* is the network's output"
    ):
        plan_pruning(nn.Linear(8, 2), images, 0.5)


def test_weights_that_are_not_finite_are_refused_by_layer(build, images):
    model = build("residual")
    model.a2[0].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=r"weights of stem.0, a2.0 are not finite"):
        plan_pruning(model, images, 0.5)


def test_the_model_is_left_as_found(build, images):
    model = build("mobile").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    plan_pruning(model, images, 0.5)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_groups_that_do_not_divide_say_what_was_reached_beside_what_was_asked(build, images):
    """Of four and of six positions in each of two groups, 30 % are one and two."""
    plan = plan_pruning(build("grouped"), images, 0.3)
    assert [(row.width_before, row.width_after) for row in plan.groups] == [(4, 3), (6, 4)]
    table = " ".join(str(plan).split())
    assert "Pruning plan: 30.0% of 10 channels" in table
    plan = plan_pruning(build("grouped"), images, 0.35)
    table = " ".join(str(plan).split())
    assert "Pruning plan: 30.0% of 10 channels" in table
    assert "asked for: 35.0% of channels" in table


class Masks(nn.Sequential):
    """Hides some inputs in training, chosen by Python's and NumPy's random numbers, as SpecAugment does."""

    def forward(self, x):
        if self.training:
            x = x * float(random.random() + np.random.random() > 0.1)  # noqa: NPY002
        return super().forward(x)


@pytest.mark.parametrize("amount", [0.5, 0.9])  # the last leaves one channel, and that very cut is tried
def test_random_numbers_of_all_libraries_go_on_as_before(amount):
    model = Masks(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    np.random.seed(0)  # noqa: NPY002
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    plan_pruning(model, torch.ones(2, 3), amount)
    assert random.getstate() == before[0]
    assert np.random.get_state()[2] == before[1][2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*", "ignore:Lazy modules")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2)),
            "0.weight has no shape yet: run the model",
        ),
        (
            lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))),
            "the model is a TorchScript module",
        ),
    ],
    ids=["lazy", "scripted"],
)
def test_a_model_that_is_not_there_yet_or_no_longer(make, says):
    with pytest.raises(UserError, match=says) as info:
        plan_pruning(make(), torch.randn(2, 4), 0.5)
    assert len(str(info.value).splitlines()) == 1
