import io
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lighten.data import build_data, diamonds

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def data():
    made = build_data("diamonds", batch_size=64)
    made.setup("fit")
    return made


def test_the_file_is_small_and_its_notice_is_kept():
    assert len(diamonds.EMBEDDED.read()) < 700_000
    assert "MIT License" in (diamonds.EMBEDDED.path.parent / "LICENSE-diamonds").read_text()


def test_the_parts_are_fixed():
    tables = diamonds.read_embedded()
    assert (tables.train.num_rows, tables.test.num_rows) == (48_418, 5_522)
    assert sum(tables.train["price"].to_pylist()) + sum(tables.test["price"].to_pylist()) == 212_135_217


def test_no_stone_is_in_two_parts():
    tables = diamonds.read_embedded()
    train, test = (set(zip(*part.select(diamonds.FEATURES).to_pydict().values(), strict=True))
                   for part in (tables.train, tables.test))  # fmt: skip
    assert len(train) > 48_000
    assert not train & test


def test_facts(data):
    assert data.name == "diamonds"
    assert data.options == {"validation": 0.1}
    assert data.input_shape == {"numbers": 6, "categories": [6, 8, 9]}
    assert (data.num_classes, data.class_names, data.mean, data.std) == (1, ("price",), (), ())
    assert data.task.settings() == {
        "name": "regression", "mean": [pytest.approx(3931.2, abs=0.1)], "std": [pytest.approx(3984.8, abs=0.1)],
        "unit": "USD",
    }  # fmt: skip
    assert "MIT" in data.licence
    assert data.notes == ()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (43_576, 4_842, 5_522)
    assert data.preprocessing()["categories"][0] == {
        "name": "cut", "values": ["Fair", "Good", "Ideal", "Premium", "Very Good"],
    }  # fmt: skip


def test_weight_and_price_belong_together(data):
    weight, price = data.test_set.inputs["numbers"][:, 0], data.test_set.labels[:, 0]
    assert torch.corrcoef(torch.stack([weight, price]))[0, 1] > 0.9  # 0.92 in the whole set


def test_the_script_builds_the_same_rows(tmp_path, monkeypatch):
    table = pq.read_table(io.BytesIO(diamonds.EMBEDDED.read()))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import build_diamonds
    from pyarrow import csv

    small = table.slice(0, 500).drop_columns("split").select([*reversed(table.column_names[1:])])
    csv.write_csv(small.sort_by("price"), tmp_path / "diamonds.csv")
    monkeypatch.setattr(build_diamonds, "ROWS", 500)
    assert build_diamonds.build(str(tmp_path)).equals(table.slice(0, 500))
    sys.modules.pop("build_diamonds"), sys.modules.pop("_embed")
