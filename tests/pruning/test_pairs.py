"""Operators on two sets of features, cut against masked."""

import torch
import torch.nn.functional as F
from pruning_nets import assert_right, net
from torch import nn

from lighten import shrink


def test_a_bilinear_layer_loses_both_its_inputs_and_its_outputs():
    model = net(
        lambda s, x: s.head(F.relu(s.c(F.relu(s.a(x)), F.relu(s.b(x))))),
        a=nn.Linear(4, 8), b=nn.Linear(4, 6), c=nn.Bilinear(8, 6, 10), head=nn.Linear(10, 2),
    )  # fmt: skip
    plan = assert_right(model, torch.randn(3, 4))
    assert {name: plan.widths[name] for name in "abc"} == {"a": (8, 4), "b": (6, 3), "c": (10, 5)}
    small = shrink(model, plan).c
    assert (small.in1_features, small.in2_features, small.out_features) == (4, 3, 5)


def test_features_that_are_compared_by_their_cosine():
    model = net(
        lambda s, x: s.head(F.cosine_similarity(s.a(x), s.b(x)[:, None].roll(1, 0), dim=-1)),
        a=nn.Linear(4, 8), b=nn.Linear(4, 8), head=nn.Linear(3, 2),
    )  # fmt: skip
    assert assert_right(model, torch.randn(3, 4)).widths["a"] == (8, 4)
