import pyarrow as pa
import pytest
import torch

from lighten.data.columns import class_names_of, classes_of, column_of, targets_of, texts_of
from lighten.errors import UserError


def column(values, kind=None):
    whole = pa.array(values, kind)
    return pa.chunked_array([whole[:1], whole[1:]])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_of_any_kind_of_string(kind):
    table = pa.table({"t": pa.array(["a", None, "b"], pa.string()).cast(kind)})
    assert texts_of(table, "t", "text", "f.csv") == ["a", "", "b"]


def test_a_column_of_nothing_is_empty_texts():
    assert texts_of(pa.table({"t": pa.nulls(2)}), "t", "text", "f") == ["", ""]


def test_a_missing_column_names_those_there_are():
    table = pa.table({"sentence": ["a"], "label": [1]})
    with pytest.raises(UserError) as caught:
        texts_of(table, "sentense", "text", "f.csv")
    assert str(caught.value) == (
        "f.csv: text='sentense', but it has no such column; did you mean 'sentence'? Choices: label, sentence"
    )
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["t", "t"])
    with pytest.raises(UserError, match="f: text='t', but it has more than one such column"):
        column_of(twice, "t", "text", "f")


def test_texts_that_are_numbers():
    with pytest.raises(UserError, match="f: text='t' is a column of int64, expected text; choose another column"):
        texts_of(pa.table({"t": [1]}), "t", "text", "f")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "c", "a", None], ("a", "b", "c")),
        ([2, 0, 1, 1], ("0", "1", "2")),
        ([True, False], ("false", "true")),
    ],
)
def test_class_names(values, names):
    assert class_names_of(column(values), "f") == names


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2, 3], "f: labels are integers from 1 to 3 and none is 0, expected all from 0 on; renumber them"),
        ([0, 2], "f: labels are integers from 0 to 2 and none is 1"),
        ([-1, 0, 1], "f: labels are integers from -1 to 1 and none is 2"),
        ([0.5, 1.0], "f: labels are double, expected integers or names"),
        (["a", "a"], "f: 1 class in the labels, expected at least 2"),
        ([0, 0], "f: 1 class in the labels, expected at least 2"),
    ],
)
def test_bad_class_names(values, says):
    with pytest.raises(UserError) as caught:
        class_names_of(column(values), "f")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["y", "x", "z", "y"], [1, 0, 2, 1]),
        ([2, 0, 1], [2, 0, 1]),
        ([True, False], [1, 0]),
    ],
)
def test_labels_by_name_or_number(values, labels):
    found = classes_of(column(values), ("x", "y", "z"), "f")
    assert found.dtype == torch.int64
    assert found.tolist() == labels
    assert classes_of(column(values, pa.int8() if values[0] == 2 else None), ("x", "y", "z"), "f").tolist() == labels


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["a", "catt", "b"], "f: label 'catt' in row 2 is unknown; did you mean 'cat'? Choices: a, b, cat"),
        ([0, 1, 3], "f: label 3 in row 3 is out of range, expected 0 to 2; fix it, or list all names in classes"),
        ([0, -1, 3], "f: label -1 in row 2 is out of range"),
        ([0, None, 1, None], "f: 2 rows have no label, the first is row 2; remove or fix them"),
        (["a", None], "f: 1 rows have no label, the first is row 2"),
        ([0.0, 1.0], "f: labels are double, expected integers or names; choose another label column"),
    ],
)
def test_bad_labels(values, says):
    with pytest.raises(UserError) as caught:
        classes_of(column(values), ("a", "b", "cat"), "f")
    assert says in str(caught.value)


def test_targets():
    found = targets_of([("x", column([1, 0])), ("y", column([True, False]))], "f", zero_or_one=True)
    assert found.dtype == torch.float32
    assert found.tolist() == [[1, 1], [0, 0]]
    assert targets_of([("x", column([2.5, -1.0]))], "f", zero_or_one=False).tolist() == [[2.5], [-1]]


@pytest.mark.parametrize(
    ("values", "zero_or_one", "says"),
    [
        ([1, 2], True, "f: x is 2 in row 2, expected 0 or 1; fix it"),
        ([1.0, 0.5], True, "f: x is 0.5 in row 2, expected 0 or 1"),
        ([1.0, float("inf")], False, "f: x is inf in row 2, expected a finite number"),
        ([1.0, float("nan")], False, "f: x is nan in row 2, expected a finite number"),
        ([1.0, None], False, "f: 1 rows have no x, the first is row 2"),
        (["a", "b"], False, "f: column 'x' is string, expected numbers"),
    ],
)
def test_bad_targets(values, zero_or_one, says):
    with pytest.raises(UserError) as caught:
        targets_of([("x", column(values))], "f", zero_or_one=zero_or_one)
    assert says in str(caught.value)


def test_numbers_beyond_float32_are_refused():
    column = pa.chunked_array([[1.0, 1e300]])
    with pytest.raises(UserError, match=r"y is 1e\+300 in row 2, expected a finite number below 3.4e38"):
        targets_of([("y", column)], "t.csv", zero_or_one=False)
