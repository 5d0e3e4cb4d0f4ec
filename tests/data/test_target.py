import pyarrow as pa
import pytest
import torch

from lighten.data.target import check_varies, find_target, read_target
from lighten.errors import UserError

COUNT = 60
ROWS = {
    "name": [["über", "猫", "b"][i % 3] for i in range(COUNT)],
    "flag": [i % 2 == 0 for i in range(COUNT)],
    "text_flag": ["TRUE" if i % 2 else "false" for i in range(COUNT)],
    "grade": [3 + i % 6 for i in range(COUNT)],
    "text_grade": [str(9 + i % 3) for i in range(COUNT)],
    "float_grade": [float(1 + i % 2) for i in range(COUNT)],
    "age": [20 + i % 11 for i in range(COUNT)],
    "price": [i * 1.5 for i in range(COUNT)],
    "text_price": [f"{i * 1.5}" for i in range(COUNT)],
    "zero": [i % 2 for i in range(COUNT)],
    "one": [i % 3 == 0 for i in range(COUNT)],
}
TABLE = pa.table(ROWS)


def found(*columns, task=None, classes=None, table=TABLE):
    return find_target(table, columns, task, classes, "t.csv")


@pytest.mark.parametrize(
    ("columns", "task", "names", "why"),
    [
        (["name"], "classification", ("b", "über", "猫"), "as name has 3 different texts;"),
        (["flag"], "classification", ("false", "true"), "as flag is true or false;"),
        (["text_flag"], "classification", ("false", "true"), "as text_flag is true or false;"),
        (["grade"], "classification", ("3", "4", "5", "6", "7", "8"), "as grade has 6 different whole numbers;"),
        (["text_grade"], "classification", ("9", "10", "11"), "as text_grade has 3 different whole numbers;"),
        (["float_grade"], "classification", ("1", "2"), "as float_grade has 2 different whole numbers;"),
        (["age"], "regression", ("age",), "as age has 11 different numbers;"),
        (["price"], "regression", ("price",), "as price has 60 different numbers;"),
        (["text_price"], "regression", ("text_price",), "as text_price has 60 different numbers;"),
        (["zero", "one"], "multilabel", ("zero", "one"), "as zero and one are all 0 or 1;"),
        (["zero", "price"], "regression", ("zero", "price"), "as zero and price are numbers;"),
    ],
)
def test_the_task_is_found_and_told(columns, task, names, why):
    target, notes = found(*columns)
    assert (target.task, target.names) == (task, names)
    (note,) = notes
    assert note.startswith(f"task={task}, {why}")


def test_a_named_task_is_taken():
    target, notes = found("grade", task="regression")
    assert (target.task, target.names, notes) == ("regression", ("grade",), [])
    assert found("age", task="classification")[0].names == tuple(str(i) for i in range(20, 31))


def test_few_rows_of_whole_numbers_are_no_classes():
    assert found("n", table=pa.table({"n": [1, 2, 3, 4, 5]}))[0].task == "regression"


def test_labels():
    classes = read_target(TABLE, found("name")[0], "t.csv")
    assert classes.dtype == torch.int64
    assert [("b", "über", "猫")[label] for label in classes.tolist()] == ROWS["name"]
    assert read_target(TABLE, found("text_flag")[0], "t.csv").tolist() == [i % 2 for i in range(COUNT)]
    numbers = read_target(TABLE, found("text_price")[0], "t.csv")
    assert (numbers.dtype, numbers.tolist()) == (torch.float64, [[price] for price in ROWS["price"]])
    several = read_target(TABLE, found("zero", "one")[0], "t.csv")
    assert several.tolist() == [[i % 2, i % 3 == 0] for i in range(COUNT)]


def test_names_of_classes_in_the_order_of_their_numbers():
    target, notes = found("zero", classes=["no", "yes"])
    assert (target.names, notes) == (("no", "yes"), [])
    assert read_target(TABLE, target, "t.csv").tolist() == ROWS["zero"]
    with pytest.raises(UserError, match=r"test\.csv: label 'maybe' in row 1 is unknown; Choices: 0, 1"):
        read_target(pa.table({"zero": ["maybe"]}), target, "test.csv")
    swapped = found("name", classes=["猫", "b", "über", "unused"])[0]
    assert read_target(TABLE, swapped, "t.csv").tolist()[:3] == [2, 0, 1]


def test_numbers_of_found_classes_are_names_in_another_table_too():
    target = found("grade")[0]
    assert read_target(pa.table({"grade": [8, 3]}), target, "test.csv").tolist() == [5, 0]
    with pytest.raises(UserError, match=r"test\.csv: label '0' in row 2 is unknown; Choices: 3, 4, 5, 6, 7, 8"):
        read_target(pa.table({"grade": [3, 0]}), target, "test.csv")


@pytest.mark.parametrize(
    ("column", "values", "options", "says"),
    [
        ("x", ["a", None, "b", "NA"], {}, "t.csv: no x in rows 2 and 4; remove or fix"),
        ("x", [1.5, float("nan"), 2.5, 3.5], {}, "t.csv: no x in row 2; remove or fix"),
        ("x", [1.5, float("inf"), 2.5, 3.5], {}, "t.csv: row 2 of x: inf, expected a finite number"),
        (
            "x",
            ["1.5", "2.5", "n.a.", "3.5"],
            {},
            "row 3 of x: 'n.a.' is text, expected a number; fix it, or name task=classification if",
        ),
        ("x", ["a"] * 4, {}, "t.csv: x is 'a' in all rows, expected at least 2 classes"),
        ("x", [7] * 4, {"task": "classification"}, "t.csv: x is '7' in all rows, expected at least 2 classes"),
        ("x", ["a", "b"], {"task": "regression"}, "row 1 of x: 'a' is text, expected a number"),
        ("x", ["a", "b"], {"classes": ["a", "c"]}, "label 'b' in row 2 is unknown"),
        ("x", [0, 2], {"classes": ["a", "c"]}, "label '2' in row 2 is unknown; Choices: 0, 1"),
        ("x", ["2020-01-01", "2020-01-02"], {}, "column 'x' holds dates"),
        ("x", [[1], [2]], {}, "column 'x' holds list<"),
    ],
)
def test_bad_targets(column, values, options, says):
    table = pa.table({column: values})
    with pytest.raises(UserError) as caught:
        read_target(
            table, find_target(table, (column,), options.get("task"), options.get("classes"), "t.csv")[0], "t.csv"
        )
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_several_are_zero_or_one():
    with pytest.raises(
        UserError, match=r"grade is neither 0 nor 1 in rows 1, 2, 3 and 57 more; fix it, or name another"
    ):
        read_target(TABLE, found("zero", "grade", task="multilabel")[0], "t.csv")
    with pytest.raises(UserError, match="label_columns has 2 columns, expected one for task=classification"):
        found("zero", "one", task="classification")


@pytest.mark.parametrize(
    ("columns", "labels", "says"),
    [
        (["price"], torch.full((4, 1), 2.5), "t.csv: price is 2.5 in all 4 training rows, nothing to learn"),
        (["zero", "price"], torch.tensor([[0, 2.5], [1, 2.5]]), "t.csv: price is 2.5 in all 2 training rows"),
        (["name"], torch.tensor([1, 1]), "t.csv: name is über in all 2 training rows"),
    ],
)
def test_nothing_to_learn(columns, labels, says):
    with pytest.raises(UserError, match=says):
        check_varies(labels, found(*columns)[0], "t.csv")
    check_varies(torch.tensor([[0, 1], [1, 0]]), found("zero", "price")[0], "t.csv")


def test_numbers_in_another_spelling_are_no_classes():
    with pytest.raises(UserError, match=r"column 'y' holds numbers that are written as '0,5'.*task=classification if"):
        find_target(pa.table({"y": ["0,5", "1,5", "2,5"]}), ("y",), None, None, "t.csv")


def test_named_classes_are_found_however_whole_numbers_are_written():
    table = pa.table({"y": ["1.0", "2.0", "1.0"]})
    target, _ = find_target(table, ("y",), None, ("1.0", "2.0"), "t.csv")
    assert target.names == ("1", "2")
    assert read_target(pa.table({"y": ["2", "1.0"]}), target, "t.csv").tolist() == [1, 0]
