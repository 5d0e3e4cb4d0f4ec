"""What is learned of a table, against scikit-learn's own imputer, scaler and encoder."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from lighten.data.coding import Coding, deviation, encode, learn
from lighten.data.features import Cells
from lighten.errors import UserError

ROWS, TRAIN = 200, 150


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    numbers = np.stack([rng.normal(5, 3, ROWS), rng.lognormal(3, 1, ROWS), rng.integers(0, 9, ROWS).astype(float)], 1)
    numbers[rng.random(ROWS) < 0.2, 1] = np.nan
    numbers[TRAIN:, 2][rng.random(ROWS - TRAIN) < 0.2] = np.nan  # missing after training alone
    names = np.stack([rng.choice(["a", "b", "ü"], ROWS), rng.choice(["x", "y", "z"], ROWS)], 1).astype(object)
    names[names[:, 1] == "z", 1] = None
    names[TRAIN::7, 0] = "unseen"
    return numbers, names


@pytest.fixture(scope="module")
def cells(table):
    numbers, names = table
    return Cells(
        {f"n{i}": column for i, column in enumerate(numbers.T)},
        {f"c{i}": pa.chunked_array([pa.array(column, pa.string())]) for i, column in enumerate(names.T)},
    )


@pytest.fixture(scope="module")
def coding(cells):
    found, notes = learn(cells.take(np.arange(TRAIN)), "t")
    assert notes == []
    return found


def test_numbers_are_filled_and_standardised_as_by_scikit_learn(table, cells, coding):
    numbers, _ = table
    impute = SimpleImputer(strategy="median").fit(numbers[:TRAIN])
    scale = StandardScaler().fit(impute.transform(numbers[:TRAIN]))
    found = encode(coding, cells)["numbers"]
    assert found.dtype == torch.float32
    assert np.allclose(found[:, :3], scale.transform(impute.transform(numbers)), atol=1e-6)
    missing = np.isnan(numbers)
    assert (coding.input_shape["numbers"], found.shape[1]) == (4, 4)
    assert np.array_equal(found[:, 3].numpy(), missing[:, 1])  # the one that training knew to miss some
    assert missing[:, 2].any()


def test_categories_are_coded_as_by_scikit_learn(table, cells, coding):
    names = table[1].copy()
    names[[[name is None for name in row] for row in names]] = np.nan  # what scikit-learn takes for missing
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    encoder.fit(names[:TRAIN])
    found = encode(coding, cells)["categories"]
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), encoder.transform(names).astype(int) + 1)
    assert coding.input_shape["categories"] == [4, 3]
    assert set(found[TRAIN::7, 0].tolist()) == {0}


def test_test_rows_teach_nothing(cells, coding):
    moved = Cells({k: np.where(np.arange(ROWS) < TRAIN, v, 1e6) for k, v in cells.numbers.items()}, cells.categories)
    assert learn(moved.take(np.arange(TRAIN)), "t")[0] == coding


def test_it_survives_json(cells, coding):
    settings = json.loads(json.dumps(coding.settings()))
    assert settings["kind"] == "numbers"
    assert Coding.of(settings) == coding


@pytest.mark.parametrize("damage", [{}, {"numbers": [{}], "categories": []}, {"numbers": 3, "categories": []}])
def test_damaged_settings(damage):
    with pytest.raises(UserError, match="preprocessing of numbers is damaged"):
        Coding.of(damage)


def same(value, count=4):
    return pa.chunked_array([pa.array([value] * count, pa.string())])


def test_columns_that_never_change_are_left_out():
    numbers = {"a": np.arange(4.0), "b": np.full(4, 7.0), "c": np.array([7, np.nan, 7, 7]), "d": np.full(4, np.nan)}
    found, notes = learn(Cells(numbers, {"e": same("x"), "f": same(None)}), "t")
    assert [column.name for column in found.numbers] == ["a", "c"]
    assert found.categories == ()
    assert notes == [f"column {name!r} is left out: it is the same in all training rows" for name in "bdef"]
    coded = encode(found, Cells(numbers, {}))
    assert set(coded) == {"numbers"}
    assert coded["numbers"][:, 1:].tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]  # 7 or missing, and the indicator


def test_nothing_that_changes():
    with pytest.raises(UserError, match=r"t: every feature is the same in all training rows \(b, e\); name others"):
        learn(Cells({"b": np.full(4, 7.0)}, {"e": same("x")}), "t")


def test_categories_alone():
    cells = Cells({}, {"a": pa.chunked_array([["x", "y", None]])})
    found, _ = learn(cells, "t")
    assert found.input_shape == {"numbers": 0, "categories": [3]}
    assert {name: value.tolist() for name, value in encode(found, cells).items()} == {"categories": [[1], [2], [0]]}


def test_numbers_whose_squares_are_too_large_still_vary():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    assert deviation(values) == values.std()
    assert deviation(1e300 * values) == pytest.approx(1e300 * values.std(), rel=1e-12)
    coding, _ = learn(Cells({"x": 1e300 * values}, {}), "t.csv")
    numbers = encode(coding, Cells({"x": 1e300 * values}, {}))["numbers"][:, 0].numpy()
    np.testing.assert_allclose(numbers, (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-6)
