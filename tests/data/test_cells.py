import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lighten.data.cells import CATEGORY, NUMBER, is_number, kind_of, names_of, numbers_of, rows_of
from lighten.errors import UserError


def chunked(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], NUMBER),
        ([1.5, None], NUMBER),
        ([None, None], NUMBER),
        ([True, False], CATEGORY),
        (["a", "b", "NA"], CATEGORY),
        (["1", " 2.5e3 ", "?", ""], NUMBER),
        (["1", "2", "x"], NUMBER),  # a mistake in a column of numbers
        (["1", "x", "y"], CATEGORY),
        (["", "NA"], NUMBER),
        (["+.5", "-7.", "Inf", "nan"], NUMBER),
        (["12-3", "4"], NUMBER),
        (["a 1,5", "b 2,5"], CATEGORY),
        (["may", "june", "may 5 be"], CATEGORY),
        (["10:1", "9:1"], CATEGORY),
    ],
)
def test_what_a_column_holds(values, kind):
    assert kind_of(chunked(values), "c", "t.csv") == kind


@pytest.mark.parametrize(
    "values",
    [
        ["2020-01-31", "1999-12-01"],
        ["31.12.2020", ""],
        ["1 Jan 2020", "12 March 1999"],
        ["Jan 1, 2020", "May 3 1999"],
        ["Dec 2020", ""],
        ["08:30", "17:05:10"],
        ["1/2/21", "3/4/21"],
        ["2020-01-31 10:30", "2020-01-31T10:30:00Z"],
        [pd.Timestamp("2020-01-31"), None],
        [pd.Timedelta("1h"), None],
    ],
)
def test_dates_are_refused_by_name(values):
    with pytest.raises(UserError, match=r"t\.csv: column 'sold' holds dates; give their year, month or age as numbers"):
        kind_of(chunked(values), "sold", "t.csv")


@pytest.mark.parametrize("values", [[[1, 2], [3]], [{"a": 1}], [b"x"]])
def test_other_types_are_refused_by_name(values):
    for read in (kind_of, names_of, numbers_of):
        with pytest.raises(UserError, match=r"t\.csv: column 'c' holds .*, expected (numbers|text|numbers or text);"):
            read(chunked(values), "c", "t.csv")


def test_numbers_are_those_that_pandas_reads(tmp_path):
    cells = ["1", "-2.5", "1e-3", "", "NA", "NaN", "null", "n/a", "007", "+4", ".5", "6."]
    file = tmp_path / "a.csv"
    file.write_text("x\n" + "\n".join(f'"{cell}"' for cell in cells) + "\n")
    expected = pd.read_csv(file)["x"].to_numpy(np.float64)
    assert np.array_equal(numbers_of(chunked(cells), "x", "t"), expected, equal_nan=True)
    typed = chunked([1, None, 3])
    assert np.array_equal(numbers_of(typed, "x", "t"), [1, math.nan, 3], equal_nan=True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["1", "n/a", "2,5"], "t.csv: row 3 of price: '2,5' is text, expected a number; fix it, or name the column in"),
        (["1", "a\x1b[31m"], "row 2 of price: 'a\\\\x1b[31m' is text"),
        (["1", "1_000"], "row 2 of price: '1_000' is text"),
        ([1.0, math.inf], "row 2 of price: inf, expected a finite number; fix it"),
        (["1", "-Infinity"], "row 2 of price: -inf, expected a finite number"),
        (["1e999"], "row 1 of price: inf, expected a finite number"),
    ],
)
def test_wrong_cells_are_told_by_row(values, says):
    with pytest.raises(UserError) as caught:
        numbers_of(chunked(values), "price", "t.csv")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([3, None, 4], ["3", None, "4"]),
        ([3.0, math.nan, 4.0, None], ["3", None, "4", None]),
        ([3.5, 4.0], ["3.5", "4"]),
        ([True, None], ["true", None]),
        (["True", "FALSE", " b ", "NA", "?", ""], ["true", "false", "b", None, None, None]),
        ([None, None], [None, None]),
    ],
)
def test_names(values, names):
    assert names_of(chunked(values), "c", "t").to_pylist() == names


def test_rows_are_counted_from_one():
    mask = np.zeros(20, bool)
    mask[[2, 4, 6, 8, 9]] = True
    assert rows_of(mask) == "rows 3, 5, 7 and 2 more"
    assert rows_of(mask[:4]) == "row 3"
    assert rows_of(mask[:7]) == "rows 3, 5 and 7"


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        (["0,5", "1,75", ""], "0,5"),
        (["1,234", "12,345.60"], "1,234"),
        (["1.234,50", "3", "2,5"], "1.234,50"),
        (["5%", "12.5 %"], "5%"),
        (["$5", "€ 1.200", "7 €"], "$5"),
        (["1\u00a0234", "12", "2\u202f345"], "1\u00a0234"),
        (["1", "2", "3,5", "4,5"], None),
    ],
)
def test_numbers_in_another_spelling_are_refused_by_name(values, cell):
    if cell is None:  # most are numbers: the cell is a mistake, and is named with its row
        assert kind_of(chunked(values), "c", "t.csv") == NUMBER
        return
    with pytest.raises(UserError) as caught:
        kind_of(chunked(values), "price", "t.csv", advice="do another thing")
    assert str(caught.value).startswith("t.csv: column 'price' holds numbers that are written as")
    assert str(caught.value).endswith("or do another thing")


def test_a_whole_number_has_one_name_however_it_is_written():
    table = chunked(["3", "3.0", "-2.", "03", "1.50", "v1.0", "10.00"])
    assert names_of(table, "c", "t.csv").to_pylist() == ["3", "3", "-2", "03", "1.50", "v1.0", "10"]
    assert names_of(chunked([3.0, None]), "c", "t.csv").to_pylist() == ["3", None]


def test_texts_that_are_numbers():
    assert all(map(is_number, ("1", " -2.5e3 ", "inf")))
    assert not any(map(is_number, ("", "x1", "1,5")))
