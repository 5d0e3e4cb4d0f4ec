import datasets
import pytest
import torch

from lighten.data import build_data
from lighten.data.glue import TASKS
from lighten.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A local copy of GLUE as on the hub: a folder for each task, test labels hidden."""
    for task, (text, pair, names) in TASKS.items():
        kind = datasets.Value("float32") if task == "stsb" else datasets.ClassLabel(names=list(names))
        used = [text, *([pair] if pair else [])]
        features = {name: datasets.Value("string") for name in used}
        features |= {"label": kind, "idx": datasets.Value("int32")}
        validation = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
        for split, count in (("train", 40), ("test", 5), *((name, 10) for name in validation)):
            rows = {name: [f"{split} {name} w{i}" for i in range(count)] for name in used}
            rows["label"] = [
                -1 if split == "test" else (i / 2 if task == "stsb" else i % len(names)) for i in range(count)
            ]
            rows["idx"] = list(range(count))
            target = tmp_path / "glue" / task / f"{split}-00000-of-00001.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(target)
    return str(tmp_path / "glue")


def build(folder, tokenizer, **options):
    given = {"path": folder, "tokenizer": tokenizer, "validation": 8, "max_length": 32, "batch_size": 8}
    return build_data("glue", **given | options)


def test_each_task_is_tested_on_its_validation_part(folder, tokenizer):
    for task, (text, pair, names) in TASKS.items():
        data = build(folder, tokenizer, task_name=task)
        assert (data.class_names, data.num_classes) == (names, len(names))
        data.prepare_data()
        data.setup("fit")
        assert (data.train_samples, len(data.val_set), len(data.test_set)) == (32, 8, 10)
        split = "validation_matched" if task == "mnli" else "validation"
        assert data.test_set.texts[3] == f"{split} {text} w3"
        batch = next(iter(data.test_dataloader()))
        assert ("token_type_ids" in batch) == (pair is not None)
        if task == "stsb":
            assert data.task == "regression"
            assert batch["labels"].dtype == torch.float32
            assert batch["labels"].tolist() == [[i / 2] for i in range(8)]
        else:
            assert data.task == "classification"
            assert batch["labels"].tolist() == [i % len(names) for i in range(8)]
        assert task in data.licence


def test_options_and_defaults(tokenizer):
    data = build_data("glue", task_name="rte", tokenizer=tokenizer)
    assert data.options == {
        "task_name": "rte", "path": "nyu-mll/glue", "validation": 500, "tokenizer": tokenizer, "max_length": 128,
        "bucket": True, "objective": "labels",
    }  # fmt: skip
    assert data.input_shape == (128,)


def test_the_hub_is_asked_for_the_task(monkeypatch, tokenizer):
    asked = []

    def refuse(*given):
        asked.append(given)
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"data set 'nyu-mll/glue', rte cannot be had from the hub .*no network"
    ) as caught:
        build_data("glue", task_name="rte", tokenizer=tokenizer).prepare_data()
    assert asked == [("nyu-mll/glue", "rte")]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task_name": "sst-2"}, "data glue: task_name='sst-2'; did you mean 'sst2'?"),
        ({}, "data glue: option 'task_name' is missing"),
    ],
)
def test_bad_options(tokenizer, options, says):
    with pytest.raises(UserError) as caught:
        build_data("glue", tokenizer=tokenizer, **options)
    assert says in str(caught.value)


def test_a_folder_that_is_not_glue(folder, tokenizer, tmp_path):
    (tmp_path / "glue" / "rte").rename(tmp_path / "glue" / "aside")
    (tmp_path / "glue" / "sst2").rename(tmp_path / "glue" / "rte")
    data = build(folder, tokenizer, task_name="rte")
    with pytest.raises(UserError, match=r"glue, rte, train: text='sentence1', but it has no such column"):
        data.prepare_data()
