"""Forwards that a proof could be blind to: each is cut rightly, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import Net, assert_right, dense
from torch import nn

from lighten.errors import UserError
from lighten.pruning import plan_pruning, shrink


def test_inputs_that_are_not_negative_stay_so():
    """A logarithm of random normals is NaN everywhere: nothing would differ from anything."""
    model = dense(lambda s, x: s.head(F.relu(s.a(torch.log(x))) / s.a(x).shape[-1]))
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(model, torch.rand(4, 8) + 0.1, 0.5)
    model = dense(lambda s, x: s.head(F.relu(s.a(torch.log(x)))))
    assert assert_right(model, torch.rand(4, 8) + 0.1).widths["a"] == (8, 4)


@pytest.mark.parametrize("example", [torch.zeros(4, 8), torch.ones(4, 8)], ids=["zeros", "ones"])
def test_a_blank_example_stands_for_any_other(example):
    """Networks without biases put out zeros on zeros, and nothing differs from anything."""
    layers = {"a": nn.Linear(8, 8, bias=False), "head": nn.Linear(8, 2, bias=False)}
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(Net(lambda s, x: s.head(F.relu(s.a(x)) / s.a(x).shape[-1]), **layers).eval(), example, 0.5)
    assert_right(Net(lambda s, x: s.head(F.relu(s.a(x))), **layers).eval(), example)


def test_where_all_is_zero_nothing_can_be_proved():
    with pytest.raises(UserError, match=r"Net puts out NaN or zeros on random input"):
        plan_pruning(dense(lambda s, x: s.head(F.relu(s.a(x))) * 0), torch.randn(4, 8), 0.5)


def test_where_all_is_nan_nothing_can_be_proved():
    model = dense(lambda s, x: s.head(F.relu(s.a(x)) * float("nan")))
    with pytest.raises(UserError, match=r"Net puts out NaN or zeros on random input of the example's shapes"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-11])
def test_outputs_may_be_small(scale):
    model = dense(lambda s, x: s.head(F.relu(s.a(x)) / s.a(x).shape[-1]) * scale)
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


def test_training_has_a_say():
    """A norm that only training uses is not in the graph: its statistics cannot follow."""
    model = dense(lambda s, x: s.head(F.relu(s.n(s.a(x)) if s.training else s.a(x))), n=nn.BatchNorm1d(8))
    with pytest.raises(UserError, match=r"a cannot be cut: .*, in training mode"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


def test_one_channel_that_stays_alone_may_lose_its_dimension():
    model = Net(
        lambda s, x: s.head(F.adaptive_avg_pool2d(F.relu(s.a(x)), 1).squeeze()), a=nn.Conv2d(3, 4, 3),
        head=nn.Linear(4, 2),
    ).eval()  # fmt: skip
    assert_right(model, torch.rand(2, 3, 6, 6))
    plan = plan_pruning(model, torch.rand(2, 3, 6, 6), 0.75)
    assert plan.widths["a"] == (4, 2)
    shrink(model, plan)
