"""What models are called with, and which of their outputs are the logits."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.utils.inputs import example_of, logits_of, run

A, B = torch.ones(2, 4), torch.zeros(2, 2)
Named = namedtuple("Named", "logits aux")


@dataclass
class Heads:
    kind: torch.Tensor
    box: torch.Tensor


@pytest.mark.parametrize(
    "output", [A, (A,), [A], {"out": A}, {"logits": A, "boxes": B}, Named(A, B), (A, (B, B)), (A, None)]
)
def test_logits_that_are_certain_are_taken(output):
    assert logits_of(output) is A


@pytest.mark.parametrize("output", [(A, B), {"kind": A, "box": B}, Heads(A, B), {}, None, "text"])
def test_logits_that_are_not_certain_are_refused_in_one_line(output):
    with pytest.raises(UserError, match="the model returns") as caught:
        logits_of(output)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "which"),
    [((B, A), 1), ({"box": B, "kind": A}, "kind"), ({"box": B, "kind": A}, 1), (Heads(A, B), "kind"), (A, "kind")],
)
def test_an_output_that_is_named_is_taken(output, which):
    assert logits_of(output, which) is A


@pytest.mark.parametrize(("output", "which"), [((A, B), 2), ({"kind": A}, "knd"), ((A, None), 1)])
def test_an_output_that_is_not_there_is_refused(output, which):
    with pytest.raises(UserError, match="outputs="):
        logits_of(output, which)


class Both(nn.Module):
    def forward(self, x1, x2):
        return x1 @ torch.ones(4, 2) + x2


@pytest.mark.parametrize("call", [((A,), {}), ((A, B, B), {}), ((), {"x1": A}), ((), {"x1": A, "x2": B, "label": B})])
def test_arguments_that_forward_does_not_take_are_told_with_those_it_takes(call):
    with pytest.raises(UserError, match=r"Both.forward takes \(x1, x2\)"):
        run(Both(), call)


def test_arrays_are_told_and_other_errors_are_left():
    with pytest.raises(UserError, match="NumPy array"):
        run(nn.Linear(4, 2), ((np.ones((2, 4), np.float32),), {}))
    with pytest.raises(TypeError, match="unsupported operand"):
        run(Both(), ((1, B), {}))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"numbers": 3, "categories": [5, 2]}, {"numbers": (torch.float32, 3), "categories": (torch.int64, 2)}),
        ({"numbers": 3, "categories": []}, {"numbers": (torch.float32, 3)}),
        ({"numbers": 0, "categories": [5]}, {"categories": (torch.int64, 1)}),
        ((7,), {"input_ids": (torch.int64, 7), "attention_mask": (torch.int64, 7)}),
    ],
)
def test_examples_by_name(shape, expected):
    found = example_of(shape, 4)
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (dtype, (4, size)) for name, (dtype, size) in expected.items()
    }


def test_examples_of_images():
    assert example_of((3, 4, 5)).shape == (2, 3, 4, 5)
