import warnings

import numpy as np
import pytest
import torch

from lighten.data.number_reader import NumberReader
from lighten.errors import UserError

SETTINGS = {
    "kind": "numbers",
    "numbers": [
        {"name": "age", "median": 40.0, "mean": 41.0, "std": 2.0, "indicator": True},
        {"name": "dose", "median": 1.0, "mean": 0.5, "std": 0.25, "indicator": False},
    ],
    "categories": [{"name": "ward", "values": ["3", "north"]}, {"name": "smoker", "values": ["false", "true"]}],
}
NUMBERS = [[1.0, 2.0, 0.0], [-0.5, 2.0, 1.0], [-0.5, -2.0, 1.0]]
CATEGORIES = [[2, 2], [0, 1], [1, 0]]


@pytest.fixture
def reader():
    return NumberReader(SETTINGS)


def check(call):
    args, inputs = call
    assert args == ()
    assert (inputs["numbers"].dtype, inputs["categories"].dtype) == (torch.float32, torch.int64)
    assert (inputs["numbers"].tolist(), inputs["categories"].tolist()) == (NUMBERS, CATEGORIES)


def test_rows(reader):
    check(
        reader.read(
            [
                {"age": 43, "dose": np.float32(1.0), "ward": "north", "smoker": True, "more": object()},
                {"age": None, "dose": None, "ward": "other", "smoker": False},
                {"age": "NA", "dose": "0", "ward": 3, "smoker": None},
            ]
        )
    )


def test_files_follow_one_another(reader, tmp_path):
    (tmp_path / "a.csv").write_text("more,smoker,ward,age,dose\nx,True,north,43,1\ny,FALSE,other,,?\n")
    (tmp_path / "b.jsonl").write_text('{"age": null, "dose": 0, "ward": 3, "smoker": null}\n')
    check(reader.read([tmp_path / "a.csv", str(tmp_path / "b.jsonl")]))
    assert reader.read(tmp_path / "a.csv")[1]["numbers"].tolist() == NUMBERS[:2]


def test_numbers_alone():
    reader = NumberReader({**SETTINGS, "categories": []})
    assert set(reader.read([{"age": 1, "dose": 2}])[1]) == {"numbers"}


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([], "no rows to read, expected mappings from column to value, or paths of files"),
        (
            [{"age": 1, "doze": 2, "ward": "a", "smoker": 1}],
            "row 1 has no 'dose' (None where it is not known); did you",
        ),
        ([{"age": "old", "dose": 2, "ward": "a", "smoker": 1}], "rows: row 1 of age: 'old' is text, expected a number"),
        ([{"age": float("inf"), "dose": 2, "ward": "a", "smoker": 1}], "rows: row 1 of age: inf, expected a finite"),
        ([{"age": [1], "dose": 2, "ward": "a", "smoker": 1}], "rows: column 'age' holds list<"),
        ([{"age": 1, "dose": 2, "ward": [1], "smoker": 1}], "rows: column 'ward' holds list<"),
        ([3], "a row is of type int, expected mappings from column to value, or paths of files"),
        (["/nonexistent.csv"], "/nonexistent.csv is missing"),
    ],
)
def test_bad_rows(reader, sources, says):
    with pytest.raises(UserError) as caught:
        reader.read(sources)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(reader, tmp_path):
    (tmp_path / "a.csv").write_text("age,dose,wart,smoker\n1,2,a,true\n")
    with pytest.raises(UserError, match=r"a\.csv: features='ward', but it has no such column; did you mean 'wart'\?"):
        reader.read([tmp_path / "a.csv"])
    (tmp_path / "a.csv").write_text("age,dose,ward,smoker\n")
    with pytest.raises(UserError, match=r"a\.csv has no rows, expected some"):
        reader.read([tmp_path / "a.csv"])


def test_codes_that_another_program_wrote_as_decimals_are_known(tmp_path):
    category = {"name": "ward", "values": ["1", "2.0", "10"]}  # models of an earlier version may have it like this
    reader = NumberReader({"kind": "numbers", "numbers": [], "categories": [category]})
    (tmp_path / "rows.csv").write_text("ward\n2.0\n\n10.0\n")
    assert reader.read(str(tmp_path / "rows.csv"))[1]["categories"][:, 0].tolist() == [2, 3]


def test_a_column_of_which_nothing_is_known_warns():
    category = {"name": "ward", "values": ["a", "b"]}
    reader = NumberReader({"kind": "numbers", "numbers": [], "categories": [category]})
    with pytest.warns(UserWarning, match=r"rows: nothing in 'ward' occurred in training, where it was 'a', 'b'; 'A' c"):
        reader.read([{"ward": "A"}, {"ward": None}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.read([{"ward": "A"}, {"ward": "b"}])
        reader.read([{"ward": None}])
