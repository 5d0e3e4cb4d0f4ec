import re

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import FiveLayers
from torch import nn

from lighten.errors import UserError
from lighten.pruning import plan_pruning, shrink
from lighten.pruning import trial as trial_module
from lighten.pruning.groups import find_groups
from lighten.pruning.trial import Trial
from lighten.pruning.verify import verify_groups


def proven(model, images):
    structure = find_groups(model, ((images,), {}))
    result = verify_groups(model, structure)
    return [g.name for g in structure.groups], [g.name for g in result.groups], result.frozen


def test_every_group_of_an_adaptive_forward_passes(images):
    found, passed, frozen = proven(FiveLayers(lambda x: x.flatten(2).unflatten(2, (8, 8))), images)
    assert found == passed == ["a", "b", "c", "d"]
    assert set(frozen) == {"head"}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda x: x.reshape(2, 8, 8, 8), r"cannot be cut: shape '\[2, 8, 8, 8\]' is invalid .*\(test_verify.py:\d+\)"),
        (lambda x: x.roll(1, 1), "cannot be cut: the forward fixes the number or the places of its channels"),
        (lambda x: torch.stack([x[:, i] for i in range(8)], 1), r"cannot be cut: .*out of bounds"),
    ],
    ids=["view", "roll", "indices"],
)
def test_sizes_written_into_the_forward_freeze_that_group_alone(body, why, images):
    found, passed, frozen = proven(FiveLayers(body), images)
    assert found == ["a", "b", "c", "d"]
    assert passed == ["b", "c", "d"]
    assert re.match(why, frozen["a"]), frozen["a"]


class Blocks(nn.Module):
    """Equal blocks, each with a size in its code that fixes its first layer."""

    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fixed": nn.Conv2d(3, 8, 1), "free": nn.Conv2d(8, 6, 1), "out": nn.Conv2d(6, 3, 1)})
            for _ in range(depth)
        )

    def forward(self, x):
        for block in self.blocks:
            inner = block["fixed"](x).reshape(len(x), 8, *x.shape[2:])
            x = x + block["out"](F.relu(block["free"](inner)))
        return x


def test_of_equal_groups_three_that_fail_speak_for_the_rest(images, monkeypatch):
    tried = []
    fails = Trial.fails
    monkeypatch.setattr(Trial, "fails", lambda self, groups: tried.append(groups) or fails(self, groups))
    found, passed, frozen = proven(Blocks(12), images)
    assert len(found) == 24
    assert passed == [f"blocks.{i}.free" for i in range(12)]
    assert "is invalid for input" in frozen["blocks.2.fixed"]
    assert frozen["blocks.11.fixed"].startswith("cannot be cut, like blocks.0.fixed: shape")
    assert len(tried) < 12


class Chain(nn.Module):
    """Layers of as many kinds, some of which have a size in the forward."""

    def __init__(self, depth, fixed):
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"layer_{chr(97 + i // 8)}{chr(97 + i % 8)}": nn.Linear(6, 6) for i in range(depth)}
        )
        self.fixed = fixed

    def forward(self, x):
        for i, layer in enumerate(self.layers.values()):
            x = torch.relu(layer(x))
            x = x.reshape(len(x), 6) if i in self.fixed else x
        return x


@pytest.mark.parametrize("fixed", [(), (11,), (3, 40)], ids=len)
def test_trials_grow_with_the_failing_groups_alone(fixed, monkeypatch):
    counts = dict.fromkeys(("trials", "copies"), 0)
    trial_of, clone_of = Trial.fails_with, trial_module.clone

    def counted(name, function):
        def call(*args, **named):
            counts[name] += 1
            return function(*args, **named)

        return call

    monkeypatch.setattr(Trial, "fails_with", counted("trials", trial_of))
    monkeypatch.setattr(trial_module, "clone", counted("copies", clone_of))
    found, passed, _ = proven(Chain(64, fixed), torch.rand(2, 6))
    assert len(found) == 63
    assert len(passed) == 63 - len(fixed)
    assert counts["trials"] <= 4 + 12 * len(fixed)
    assert counts["copies"] == 1


def test_what_a_forward_selects_by_its_values_is_compared_in_float64(images):
    """Whether a number is odd in its seventh digit depends on rounding in float32."""

    class Odd(FiveLayers):
        def forward(self, x):
            y = super().forward(x)
            return y + torch.remainder(torch.floor(y * 1e6), 2)

    assert proven(Odd(lambda x: x), images)[1] == ["a", "b", "c", "d"]
    passed = proven(Odd(lambda x: x.roll(1, 1)), images)[1]
    assert passed == ["b", "c", "d"]


def test_a_wrong_place_of_equal_size_is_found(images):
    """The slice keeps its length when its first channels go: only the values tell."""
    _, passed, frozen = proven(FiveLayers(lambda x: x[:, 2:6], inputs=4), images)
    assert "b" in passed
    assert not any(name.startswith("a[") for name in passed)
    assert "a" in frozen


def test_a_branch_of_training_alone_is_tried_too(images):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
            self.aside = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            out = self.head(F.relu(self.b(x)))
            return (out, self.aside(x)) if self.training else out

    _, passed, frozen = proven(Auxiliary().eval(), images)
    assert passed == ["b"]
    assert frozen["a"].startswith("cannot be cut: Given groups=1")
    assert frozen["a"].endswith("in training mode")


def test_a_dead_branch_hides_nothing(images):
    """With the head at zero every cut looks right; random weights tell."""
    model = FiveLayers(lambda x: x.roll(1, 1))
    nn.init.zeros_(model.head.weight)
    assert proven(model, images)[1] == ["b", "c", "d"]
    assert not model.head.weight.any()


def test_an_input_that_cannot_be_replaced_is_refused():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            if not torch.compiler.is_compiling():
                raise RuntimeError("only the real thing")
            return self.b(self.a(x))

    model = Picky()
    with pytest.raises(UserError, match=r"cannot be run on random input of the example's shapes \(only the real thing"):
        verify_groups(model, find_groups(model, ((torch.rand(1, 4),), {})))


class Inverted(nn.Module):
    """An inverted residual that adds its input where the shapes happen to agree."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.up, self.down = nn.Conv2d(inputs, hidden, 1), nn.Conv2d(hidden, outputs, 1)

    def forward(self, x):
        y = self.down(torch.relu(self.up(x)))
        return x + y if y.shape == x.shape else y


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_widths_that_meet_by_chance_are_moved_apart(scope):
    """Half of 12 and three quarters of 8 are both 6: the forward would add what it did not add before."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), Inverted(8, 12, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
    )
    net[0].weight.data[:2], net[0].bias.data[:2] = 0.0, 0.0
    net[1].down.weight.data[:6], net[1].down.bias.data[:6] = 0.0, 0.0
    images = torch.randn(2, 1, 6, 6)
    for amount in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        plan = plan_pruning(net, images, amount, scope=scope, score="magnitude")
        widths = {layer: after for layer, (_, after) in plan.widths.items()}
        assert widths["0"] != widths["1.down"]
        shrink(net, plan)
