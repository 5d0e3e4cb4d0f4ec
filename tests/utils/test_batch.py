"""What parts of a batch are: said, certain, or refused."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from lighten.errors import UserError
from lighten.utils.batch import BatchFormat, KeyedBatch

X, Z, Y, W = (torch.full((2,), float(i)) for i in range(4))
Pair = namedtuple("Pair", "image target")


@dataclass
class Sample:
    image: torch.Tensor
    target: torch.Tensor


@pytest.mark.parametrize(
    ("batch", "call", "labels"),
    [
        (X, ((X,), {}), None),
        ([X], ((X,), {}), None),
        ((X, Y), ((X,), {}), Y),
        ([[X, Z], Y], ((X, Z), {}), Y),
        (({"a": X}, Y), ((), {"a": X}), Y),
        ({"a": X, "labels": Y, "keys": W}, ((), {"a": X}), Y),
        (UserDict({"a": X, "labels": Y}), ((), {"a": X}), Y),
        (KeyedBatch(X, Y, W), ((X,), {}), Y),
    ],
)
def test_what_is_certain_needs_no_word(batch, call, labels):
    parts = BatchFormat().split(batch)
    assert parts.call == call
    assert parts.labels is labels


@pytest.mark.parametrize(
    "batch", [(X, Z, Y), [X, Z, Y, W], (), Sample(X, Y), "text", 3], ids=lambda b: type(b).__name__
)
def test_what_is_not_certain_is_refused_in_one_line(batch):
    with pytest.raises(UserError) as caught:
        BatchFormat().split(batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "batch", "args", "found"),
    [
        (("input", "input", "label"), (X, Z, Y), (X, Z), (Y, None, None)),
        (("label", "weight", "input"), [Y, W, X], (X,), (Y, None, W)),
        (("input", "label", "ignore", "key"), (X, Y, Z, W), (X,), (Y, W, None)),
        (("input", "label", "weight"), (X, Y), (X,), (Y, None, None)),
        (("input", "input", "label"), (X, Z), (X, Z), (None, None, None)),
        (("input", "label"), X, (X,), (None, None, None)),
        ({"target": "label", "image": "input"}, {"target": Y, "image": X, "id": Z}, (X,), (Y, None, None)),
        ({"target": "label", "image": "input"}, Pair(X, Y), (X,), (Y, None, None)),
        ({"target": "label", "image": "input"}, Sample(X, Y), (X,), (Y, None, None)),
    ],
)
def test_roles_say_what_parts_are(roles, batch, args, found):
    parts = BatchFormat(roles).split(batch)
    assert parts.call == (args, {})
    assert all(a is b for a, b in zip((parts.labels, parts.keys, parts.weights), found, strict=True))


def test_names_without_an_input_leave_the_rest_as_keywords():
    parts = BatchFormat({"y": "label", "id": "ignore"}).split({"x": X, "z": Z, "y": Y, "id": W})
    assert parts.call == ((), {"x": X, "z": Z})
    assert parts.labels is Y


def test_the_third_part_is_keys_only_where_they_are_asked_for():
    assert BatchFormat(keyed=True).split((X, Y, W)).keys is W
    assert BatchFormat().split(KeyedBatch(X, Y, W)).keys is W


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ("input", "a role for each part"),
        (("input", "labels"), "did you mean 'label'"),
        ({"label": "target"}, 'batch={"target": "label"}'),
        (("input", "label", "label"), "'label' twice"),
        (("label", "weight"), "no 'input'"),
    ],
)
def test_roles_that_cannot_be_are_refused(roles, says):
    with pytest.raises(UserError, match=says.replace("{", r"\{")):
        BatchFormat(roles)


@pytest.mark.parametrize(
    ("roles", "batch"),
    [
        (("input", "input", "label"), (X,)),
        (("input", "label"), (X, Y, W)),
        (("input", "weight", "label"), (X, Y)),
        (("input", "label"), {"x": X}),
        ({"target": "label"}, (X, Y)),
        ({"image": "input"}, {"x": X}),
    ],
)
def test_batches_that_do_not_fit_the_roles_are_refused(roles, batch):
    with pytest.raises(UserError, match="batch"):
        BatchFormat(roles).split(batch)


def test_labels_under_another_name_are_named():
    with pytest.raises(UserError, match=r"'image', 'target'; name them, as in batch=\{\"target\": \"label\"\}"):
        BatchFormat().labelled({"image": X, "target": Y})
