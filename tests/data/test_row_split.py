import numpy as np
import pyarrow as pa
import pytest
import torch

from lighten.data.row_split import Shares, group_keys, split_rows
from lighten.errors import UserError


def split(classes, validation=0.1, test=0.1, **options):
    return split_rows(torch.as_tensor(classes), Shares(validation, test), "t.csv", **options)


def test_each_row_is_in_one_part():
    parts = split(np.zeros(1000, np.int64), 0.2, 0.1)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 720, "val": 180, "test": 100}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    assert all((np.diff(rows) > 0).all() for rows in parts.values())
    again = split(np.zeros(1000, np.int64), 0.2, 0.1)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_a_number_of_rows():
    assert {k: len(v) for k, v in split(np.zeros(50, np.int64), 7, 5).items()} == {"train": 38, "val": 7, "test": 5}


def test_a_given_test_part():
    assert set(split(np.zeros(20, np.int64), 0.1, None)) == {"train", "val"}


def test_each_class_gives_its_share():
    classes = np.repeat([0, 1, 2], [700, 200, 100])
    parts = split(classes)
    assert np.bincount(classes[parts["test"]]).tolist() == [70, 20, 10]
    assert np.bincount(classes[parts["val"]]).tolist() == [63, 18, 9]


def test_twelve_rows():
    assert {k: len(v) for k, v in split(np.zeros(12, np.int64)).items()} == {"train": 10, "val": 1, "test": 1}


def groups(count=300, kinds=40):
    names = [f"g{i * 7 % kinds}" for i in range(count)]
    return names, group_keys(pa.table({"g": names}), "g", "t.csv")


def test_no_group_is_in_two_parts():
    names, keys = groups()
    parts = split(np.arange(300) % 2, groups=keys)
    found = {part: {names[row] for row in rows} for part, rows in parts.items()}
    assert {part: len(kinds) for part, kinds in found.items()} == {"train": 32, "val": 4, "test": 4}
    assert len(found["train"] | found["val"] | found["test"]) == 40


def test_groups_go_by_their_names_not_by_their_places():
    names, keys = groups()
    back = list(reversed(names))
    parts = split(np.zeros(300, np.int64), groups=keys)
    reverse = split(np.zeros(300, np.int64), groups=group_keys(pa.table({"g": back}), "g", "t.csv"))
    assert {names[row] for row in parts["test"]} == {back[row] for row in reverse["test"]}


def test_a_number_of_rows_becomes_a_share_of_groups():
    _, keys = groups()
    parts = split(np.zeros(300, np.int64), 54, 30, groups=keys)
    assert len(np.unique(keys[parts["test"]])) == 4  # 30 of 300 rows are 4 of 40 groups
    assert len(np.unique(keys[parts["val"]])) == 7


@pytest.mark.parametrize(
    ("rows", "validation", "test", "says"),
    [
        (3, 0.1, 0.1, "t.csv: validation takes 1 of 2 rows, and too few are left for training; hold out fewer, or add"),
        (2, 0.1, 0.1, "test_share takes 1 of 2 rows"),
        (20, 30, 0.1, "validation takes 18 of 18 rows"),
        (20, 0.1, 0.99, "test_share takes 20 of 20 rows"),
    ],
)
def test_too_few_rows(rows, validation, test, says):
    with pytest.raises(UserError, match=says):
        split(np.zeros(rows, np.int64), validation, test)


def test_too_few_groups():
    with pytest.raises(UserError, match=r"t\.csv: group_column='g' holds one group, expected several; leave it out"):
        group_keys(pa.table({"g": ["a"] * 9}), "g", "t.csv")
    with pytest.raises(UserError, match=r"t\.csv: no g in row 2; remove or fix"):
        group_keys(pa.table({"g": ["a", "", "b"]}), "g", "t.csv")
    with pytest.raises(UserError, match="validation takes 1 of 1 groups"):
        split(np.zeros(9, np.int64), groups=np.arange(9, dtype=np.uint64) % 2)
    assert group_keys(pa.table({"g": ["a"]}), None, "t.csv") is None


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_shares_out_of_range(value):
    with pytest.raises(UserError, match=r"validation=.*, expected a share below 1 or a number of rows"):
        Shares(value, 0.1)
    with pytest.raises(UserError, match=r"test_share=.*, expected a share below 1 or a number of rows"):
        Shares(0.1, value)
