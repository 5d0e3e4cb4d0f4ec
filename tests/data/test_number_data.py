"""A table of numbers, from its file to batches."""

import json
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lighten.data import build_data
from lighten.data.number_reader import NumberReader
from lighten.errors import UserError

COUNT = 200


def rows(count=COUNT, seed=0):
    draw = random.Random(seed)
    ages = [draw.choice(["", "NA", str(draw.randint(20, 80))]) for _ in range(count)]
    return pd.DataFrame(
        {
            "age": ages,
            "dose": [f"{draw.uniform(0, 5):.5f}" for _ in range(count)],
            "ward": [draw.choice(["north", "süd", ""]) for _ in range(count)],
            "smoker": [draw.choice(["true", "false"]) for _ in range(count)],
            "score": [f"{draw.gauss(100, 15):.3f}" for _ in range(count)],
            "outcome": [draw.choice(["ill", "well", "well", "well"]) for _ in range(count)],
            "red": [str(draw.randint(0, 1)) for _ in range(count)],
            "blue": [str(draw.randint(0, 1)) for _ in range(count)],
            "person": [f"p{i % 31}" for i in range(count)],
        }
    )


FEATURES = ["age", "dose", "ward", "smoker"]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "train.csv"
    rows().to_csv(file, index=False)
    return str(file)


@pytest.fixture
def build(path):
    def make(**options):
        data = build_data("table", **{"path": path, "features": FEATURES, "label": "score", "batch_size": 16} | options)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def places(data):
    """Return the rows of the file in each part, by the dose, which is different in all of them."""
    column = next(i for i, c in enumerate(data.preprocessing()["numbers"]) if c["name"] == "dose")
    learned = data.preprocessing()["numbers"][column]
    doses = rows()["dose"].astype(float).to_numpy()
    found = {}
    for part in ("train", "val", "test"):
        values = getattr(data, f"{part}_set").inputs["numbers"][:, column].double().numpy()
        values = values * learned["std"] + learned["mean"]
        found[part] = np.abs(values[:, None] - doses).argmin(1)
    return found


def test_a_number_to_estimate(build):
    data = build(unit="points")
    truth = rows()["score"].astype(float).to_numpy()
    parts = places(data)
    mean, std = truth[parts["train"]].mean(), truth[parts["train"]].std()
    assert data.task.settings() == {
        "name": "regression", "mean": pytest.approx((mean,)), "std": pytest.approx((std,)), "unit": "points",
    }  # fmt: skip
    for part, chosen in parts.items():
        labels = getattr(data, f"{part}_set").labels
        assert (labels.dtype, labels.shape) == (torch.float32, (len(chosen), 1))
        assert np.allclose(labels[:, 0], (truth[chosen] - mean) / std, atol=1e-5)
    assert (data.num_classes, data.class_names, data.views) == (1, ("score",), 1)
    assert data.notes == ("task=regression, as score has 200 different numbers; name another task to change it",)


def test_all_is_learned_of_training_rows_alone(build):
    data = build()
    learned = {column["name"]: column for column in data.preprocessing()["numbers"]}
    ages = pd.to_numeric(rows()["age"], errors="coerce").to_numpy()[places(data)["train"]]
    filled = np.where(np.isnan(ages), np.nanmedian(ages), ages)
    assert learned["age"] == {
        "name": "age", "median": np.nanmedian(ages), "mean": pytest.approx(filled.mean()),
        "std": pytest.approx(filled.std()), "indicator": True,
    }  # fmt: skip
    assert not learned["dose"]["indicator"]
    assert data.preprocessing()["categories"] == [
        {"name": "ward", "values": ["north", "süd"]},
        {"name": "smoker", "values": ["false", "true"]},
    ]
    assert data.input_shape == {"numbers": 3, "categories": [3, 3]}
    assert json.loads(json.dumps(data.preprocessing())) == data.preprocessing()


def test_classes_and_several_labels(build):
    data = build(label="outcome")
    assert (data.task.name, data.class_names, data.num_classes) == ("classification", ("ill", "well"), 2)
    shares = [(data_set.labels == 0).float().mean() for data_set in (data.train_set, data.val_set, data.test_set)]
    assert max(shares) - min(shares) < 0.06
    data = build(label_columns=["red", "blue"])
    assert (data.task.name, data.class_names, data.num_classes) == ("multilabel", ("red", "blue"), 2)
    truth = rows()[["red", "blue"]].astype(float).to_numpy()
    assert data.test_set.labels.dtype == torch.float32
    assert np.array_equal(data.test_set.labels.numpy(), truth[places(data)["test"]])


def test_batches(build):
    data = build()
    (batch, *_) = data.train_dataloader()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "numbers": (torch.float32, (16, 3)),
        "categories": (torch.int64, (16, 2)),
        "labels": (torch.float32, (16, 1)),
    }
    data.keyed = True
    (batch, *_) = data.train_dataloader()
    assert torch.equal(data.train_set.labels[batch["keys"]], batch["labels"])
    tests = torch.cat([batch["labels"] for batch in data.test_dataloader()])
    assert torch.equal(tests, data.test_set.labels)
    single = data.train_set[5]
    assert torch.equal(single["numbers"], data.train_set.inputs["numbers"][5])
    assert data.train_samples == len(data.train_set) == 162


def test_the_splits_are_the_same_for_each_seed_and_batch(build):
    first, second = build(), build(seed=7, batch_size=4)
    assert first.fingerprint == second.fingerprint
    assert all(np.array_equal(a, b) for a, b in zip(places(first).values(), places(second).values(), strict=True))
    assert build(validation=0.2).fingerprint != first.fingerprint


def test_a_test_file(build, tmp_path):
    other = rows(30, seed=1).assign(ward="unseen")
    other.to_csv(tmp_path / "test.csv", index=False)
    data = build(test_path=str(tmp_path / "test.csv"))
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (180, 20, 30)
    assert set(data.test_set.inputs["categories"][:, 0].tolist()) == {0}
    mean, std = data.task.mean[0], data.task.std[0]
    assert np.allclose(data.test_set.labels[:, 0] * std + mean, other["score"].astype(float), atol=1e-3)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv", "csv;"])
def test_each_format_gives_the_same(build, tmp_path, suffix):
    expected = build()
    plain = rows()
    typed = plain.assign(
        age=pd.to_numeric(plain["age"], errors="coerce"), dose=plain["dose"].astype(float),
        score=plain["score"].astype(float), smoker=plain["smoker"] == "true",
    )  # fmt: skip
    file = tmp_path / f"other.{suffix.rstrip(';')}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pandas(typed), file)
    elif suffix == "jsonl":
        typed.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        plain.to_csv(file, index=False, sep="\t" if suffix == "tsv" else ";")
    assert build(path=str(file)).fingerprint == expected.fingerprint


def test_no_person_is_in_two_parts(build):
    data = build(group_column="person")
    people = rows()["person"].to_numpy()
    found = [set(people[chosen]) for chosen in places(data).values()]
    assert sum(map(len, found)) == len(set().union(*found)) == 31


def test_twelve_rows(build, tmp_path):
    rows(12).to_csv(tmp_path / "few.csv", index=False)
    for label in ("score", "outcome"):
        data = build(path=str(tmp_path / "few.csv"), label=label, batch_size=4)
        assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [10, 1, 1]
        assert len(list(data.train_dataloader())) == 2


def test_nothing_is_read_before_it_is_needed(tmp_path):
    file = tmp_path / "late.csv"
    data = build_data("table", path=str(file), features=["age"], label="score", batch_size=4)
    rows().to_csv(file, index=False)
    assert data.task.name == "regression"
    assert (data.mean, data.std, data.keyed) == ((), (), False)
    assert str(file) in data.licence


def test_what_is_left_out_is_told(build, path):
    frame = rows()
    frame["row"] = range(COUNT)
    frame["hospital"] = "one"
    frame.to_csv(path, index=False)
    data = build(features=None, exclude=["red", "blue", "outcome", "person"])
    assert [column["name"] for column in data.preprocessing()["numbers"]] == ["age", "dose"]
    assert data.notes[1:] == (
        "column 'row' is left out: it counts the rows",
        "column 'hospital' is left out: it is the same in all training rows",
    )


def test_the_reader_prepares_rows_as_the_data_does(build, tmp_path):
    other = rows(30, seed=1)
    other.to_csv(tmp_path / "test.csv", index=False)
    data = build(test_path=str(tmp_path / "test.csv"))
    args, inputs = NumberReader(json.loads(json.dumps(data.preprocessing()))).read([tmp_path / "test.csv"])
    assert args == ()
    assert set(inputs) == {"numbers", "categories"}
    assert all(torch.equal(inputs[name], data.test_set.inputs[name]) for name in inputs)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"dose": "2020-01-01"}, {}, "column 'dose' holds dates; give their year, month or age as numbers"),
        ({"score": "7.5"}, {}, "score is 7.5 in all 162 training rows, nothing to learn"),
        ({"outcome": "ill"}, {"label": "outcome"}, "outcome is 'ill' in all rows, expected at least 2 classes"),
        ({"person": "p1"}, {"group_column": "person"}, "group_column='person' holds one group"),
        ({"age": "40", "dose": "1", "ward": "x", "smoker": "true"}, {}, "every feature is the same in all training"),
        ({}, {"validation": 180}, "validation takes 180 of 180 rows"),
        ({}, {"batch_size": 0}, "batch_size=0"),
        ({}, {"label": "outcome", "unit": "m"}, "unit='m' has no effect with task=classification; leave it out"),
    ],
)
def test_bad_tables(build, path, change, options, says):
    rows().assign(**change).to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        build(**options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_cells_are_told_by_row(build, path):
    for column, cell, says in (
        ("dose", "much", "row 17 of dose: 'much' is text, expected a number"),
        ("dose", "inf", "row 17 of dose: inf, expected a finite number"),
        ("score", "", "no score in row 17; remove or fix"),
        ("score", "NaN", "no score in row 17; remove or fix"),
    ):
        frame = rows()
        frame.loc[16, column] = cell
        frame.to_csv(path, index=False)
        with pytest.raises(UserError, match=says):
            build()


def test_empty_tables(build, path, tmp_path):
    rows(0).to_csv(tmp_path / "empty.csv", index=False)
    for options in ({"path": str(tmp_path / "empty.csv")}, {"test_path": str(tmp_path / "empty.csv")}):
        with pytest.raises(UserError, match=r"empty\.csv has no rows, expected some"):
            build(**options)
