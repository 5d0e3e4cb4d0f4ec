import json

import numpy as np
import pyarrow as pa
import pytest
from picture_files import noise, write
from pyarrow import parquet

from lighten.data.image_table import find_in_table
from lighten.errors import UserError

ROWS = [
    {"image": "1.png", "label": "cat", "age": 3, "price": 1.5, "red": 1, "round": 0, "person": "ann"},
    {"image": "2.png", "label": "dog", "age": 40, "price": 2.0, "red": 0, "round": 0, "person": "ann"},
    {"image": "3.png", "label": "cat", "age": 7, "price": -3.0, "red": 1, "round": 1, "person": "bob"},
    {"image": "4.png", "label": "ümlaut, 猫", "age": 8, "price": 4.5, "red": 0, "round": 1, "person": "cyd"},
]


def table(tmp_path, rows=ROWS, suffix=".parquet"):
    for row in ROWS:
        write(tmp_path / row["image"], noise(2, 2))
    path = tmp_path / f"labels{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        cells = [[f'"{cell}"' if isinstance(cell, str) else str(cell) for cell in row.values()] for row in rows]
        path.write_text("\n".join(map(",".join, [list(rows[0]), *cells])), encoding="utf-8-sig")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def find(path, **changes):
    given = {
        "folder": None, "image_column": "image", "label_column": None, "label_columns": (), "group_column": None,
        "classes": None, "task": None,
    }  # fmt: skip
    return find_in_table(str(path), **given | changes)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_names_are_classes(tmp_path, suffix):
    found = find(table(tmp_path, suffix=suffix))
    assert found.task == "classification"
    assert found.class_names == ("cat", "dog", "ümlaut, 猫")
    assert found.labels.tolist() == [0, 1, 0, 2]
    assert found.files == tuple(str(tmp_path / row["image"]) for row in ROWS)


def test_paths_are_relative_to_the_folder(tmp_path):
    path = table(tmp_path)
    moved = path.rename(tmp_path.parent / f"{tmp_path.name}.parquet")
    assert find(moved, folder=str(tmp_path)).files[0] == str(tmp_path / "1.png")
    with pytest.raises(
        UserError, match=r"4 of 4 images are not there, the first is '1.png' in row 1, .*; give folder, which"
    ):
        find(moved)


def test_numbers_are_numbers(tmp_path):
    path = table(tmp_path)
    found = find(path, label_column="price")
    assert (found.task, found.class_names) == ("regression", ("price",))
    assert found.labels.tolist() == [[1.5], [2.0], [-3.0], [4.5]]
    assert find(path, label_columns=("price", "age")).labels.tolist() == [[1.5, 3], [2, 40], [-3, 7], [4.5, 8]]


def test_several_labels(tmp_path):
    found = find(table(tmp_path), label_columns=("red", "round"))
    assert (found.task, found.class_names) == ("multilabel", ("red", "round"))
    assert found.labels.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]


def test_few_whole_numbers_are_classes_and_many_are_numbers_unless_it_is_said(tmp_path):
    path = table(tmp_path)
    few = find(path, label_column="red")
    assert (few.task, few.class_names) == ("classification", ("0", "1"))
    many = find(path, label_column="age")
    assert many.task == "regression"
    assert "4 different whole numbers" in many.why
    said = find(path, label_column="age", task="classification")
    assert said.class_names == ("3", "7", "8", "40")
    assert said.labels.tolist() == [0, 3, 1, 2]
    assert find(path, label_column="red", task="regression").labels.tolist() == [[1], [0], [1], [0]]


def test_300_classes(tmp_path):
    rows = [{"image": ROWS[0]["image"], "label": f"class {number % 300}"} for number in range(900)]
    assert len(find(table(tmp_path, rows)).class_names) == 300


def test_groups(tmp_path):
    assert find(table(tmp_path), group_column="person").groups == ("ann", "ann", "bob", "cyd")


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        ({}, {"label_column": "lable"}, r"label_column='lable', but it has no such column; did you mean 'label'\?"),
        ({}, {"image_column": "imag"}, r"image_column='imag', but it has no such column; did you mean 'image'\?"),
        ({}, {"label_columns": ("red", "rund")}, r"label_columns='rund', .*did you mean 'round'\?"),
        ({}, {"group_column": "persn"}, r"group_column='persn', .*did you mean 'person'\?"),
        (
            {"image": "nowhere.png"},
            {},
            "1 of 4 images are not there, the first is 'nowhere.png' in row 2, looked for in",
        ),
        ({"image": None}, {}, "row 2 has no image, expected the path of an image"),
        ({"label": None}, {}, "1 rows have no label, the first is row 2"),
        ({"label": " "}, {}, "1 rows have no label, the first is row 2"),
        ({"price": None}, {"label_column": "price"}, "1 rows have no price, the first is row 2"),
        ({"price": float("nan")}, {"label_column": "price"}, "price is nan in row 2, expected a finite number"),
        ({"person": None}, {"group_column": "person"}, "1 rows have no person, the first is row 2"),
        ({"red": 5}, {"label_columns": ("red", "round"), "task": "multilabel"}, "red is 5 in row 2, expected 0 or 1"),
        ({}, {"label_column": "label", "task": "regression"}, "column 'label' is string, expected numbers"),
        ({}, {"label_column": "price", "task": "classification"}, "expected classes; set task: regression"),
        ({}, {"classes": ("cat", "dog")}, "class 'ümlaut, 猫' is not in classes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, changes, options, line):
    rows = [row | changes if place == 1 else row for place, row in enumerate(ROWS)]
    with pytest.raises(UserError, match=line) as error:
        find(table(tmp_path, rows), **options)
    assert "\n" not in str(error.value)


def test_a_target_that_is_always_the_same_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'price' is 2.5 in every row, which nothing can be learned from"):
        find(table(tmp_path, [row | {"price": 2.5} for row in ROWS]), label_column="price")


def test_one_class_and_no_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"one class \('cat'\), expected at least two"):
        find(table(tmp_path, [row | {"label": "cat"} for row in ROWS]))
    path = tmp_path / "empty.parquet"
    parquet.write_table(pa.table({"image": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="has no rows, expected one an image"):
        find(path)


def test_labels_of_numbers_stay_what_is_written(tmp_path):
    rows = [row | {"label": value} for row, value in zip(ROWS, (True, False, True, False), strict=True)]
    assert find(table(tmp_path, rows)).class_names == ("false", "true")
    assert np.array_equal(find(table(tmp_path, rows)).labels, [1, 0, 1, 0])


def test_classes_that_another_program_wrote_as_decimals(tmp_path):
    rows = [row | {"red": float(row["red"])} for row in ROWS]
    assert find(table(tmp_path, rows), label_column="red").class_names == ("0", "1")
    assert find(table(tmp_path, rows), label_column="red", task="regression").labels.tolist() == [[1], [0], [1], [0]]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (("1,5", "2,5", "3,5", "4"), "column 'price' holds numbers that are written as '1,5'; .* task: classification"),
        (("1.5", "old", "3", "4"), "row 2 of price: 'old' is text, expected a number; fix it, or set task: classif"),
    ],
)
def test_numbers_are_no_names_of_classes(tmp_path, values, line):
    rows = [row | {"price": value} for row, value in zip(ROWS, values, strict=True)]
    with pytest.raises(UserError, match=line):
        find(table(tmp_path, rows), label_column="price")
    assert find(table(tmp_path, rows), label_column="price", task="classification").task == "classification"


def test_whole_numbers_may_be_names_among_others(tmp_path):
    rows = [row | {"label": label} for row, label in zip(ROWS, ("1", "2", "3", "other"), strict=True)]
    assert find(table(tmp_path, rows)).class_names == ("1", "2", "3", "other")


def test_an_empty_text_is_no_group(tmp_path):
    rows = [row | {"person": "" if place == 1 else row["person"]} for place, row in enumerate(ROWS)]
    with pytest.raises(UserError, match="1 rows have no person, the first is row 2"):
        find(table(tmp_path, rows), group_column="person")
