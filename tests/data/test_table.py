import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lighten.data import build_data
from lighten.errors import UserError

COUNT = 60
NAMES = ("bad", "fair", "good")


def columns(count=COUNT, offset=0):
    numbers = range(offset, offset + count)
    return {
        "text": [f"w{i % 40} w{i // 40} the" for i in numbers],
        "other": [f"w{i % 7}" for i in numbers],
        "label": [NAMES[i % 3] for i in numbers],
        "number": [i % 3 for i in numbers],
        "score": [i / 10 for i in numbers],
        "red": [i % 2 for i in numbers],
        "blue": [int(i % 5 == 0) for i in numbers],
    }


@pytest.fixture
def files(tmp_path):
    paths = {}
    for name, given in (("train", columns()), ("test", columns(15, COUNT))):
        paths[name] = str(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table(given), paths[name])
    return paths


@pytest.fixture
def build(files, tokenizer):
    def make(setup=True, **options):
        given = {"path": files["train"], "validation": 6, "max_length": 16, "tokenizer": tokenizer, "batch_size": 8}
        data = build_data("table", **given | options)
        if setup:
            data.setup("fit")
        return data

    return make


def test_a_file_for_training_and_one_for_testing(build, files):
    data = build(test_path=files["test"])
    assert data.class_names == NAMES
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (54, 6, 15)
    assert data.test_set.texts == columns(15, COUNT)["text"]
    assert [NAMES[i] for i in data.test_set.labels.tolist()] == columns(15, COUNT)["label"]
    assert files["train"] in data.licence


def test_one_text_in_ten_is_for_testing_where_nothing_else_is(build):
    data = build()
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (48, 6, 6)
    parts = [set(part.texts) for part in (data.train_set, data.val_set, data.test_set)]
    assert parts[0] | parts[1] | parts[2] == set(columns()["text"])
    assert torch.bincount(data.test_set.labels).tolist() == [2, 2, 2]


def test_numbers_as_labels_with_and_without_names(build):
    assert build(label="number").class_names == ("0", "1", "2")
    named = build(label="number", classes=["x", "y", "z", "unused"])
    assert (named.class_names, named.num_classes) == (("x", "y", "z", "unused"), 4)
    text = named.train_set.texts[5]
    assert named.train_set.labels[5] == columns()["number"][columns()["text"].index(text)]


def test_classes_give_names_their_numbers(build):
    data = build(classes=["good", "fair", "bad"])
    text = data.train_set.texts[0]
    label = columns()["label"][columns()["text"].index(text)]
    assert data.class_names[data.train_set.labels[0]] == label


def test_pairs(build):
    data = build(text_pair="other")
    batch = next(iter(data.test_dataloader()))
    first = columns()["text"].index(data.test_set.texts[0])
    expected = data.tokenizer(columns()["text"][first], columns()["other"][first])
    length = len(expected["input_ids"])
    assert batch["input_ids"][0, :length].tolist() == expected["input_ids"]
    assert batch["token_type_ids"][0, :length].tolist() == expected["token_type_ids"]


def test_multilabel(build):
    data = build(task="multilabel", label_columns=["red", "blue"])
    assert (data.task, data.class_names, data.num_classes) == ("multilabel", ("red", "blue"), 2)
    batch = next(iter(data.test_dataloader()))
    assert (batch["labels"].dtype, batch["labels"].shape) == (torch.float32, (6, 2))
    for text, labels in zip(data.test_set.texts, batch["labels"].tolist(), strict=True):
        row = columns()["text"].index(text)
        assert labels == [columns()["red"][row], columns()["blue"][row]]


@pytest.mark.parametrize(
    ("options", "names"), [({"label": "score"}, ["score"]), ({"label_columns": ["score", "red"]}, ["score", "red"])]
)
def test_regression(build, options, names):
    data = build(task="regression", **options)
    assert (data.task, data.num_classes, data.class_names) == ("regression", len(names), tuple(names))
    row = columns()["text"].index(data.test_set.texts[3])
    assert data.test_set.labels[3].tolist() == pytest.approx([columns()[name][row] for name in names])


def test_masked_language_modelling_needs_no_labels(build):
    data = build(objective="mlm", label="nowhere")
    assert (data.task, data.num_classes) == ("masked_lm", 49)
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == batch["input_ids"].shape


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "set"
    home.mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, count, label in (("train", 40, None), ("validation", 8, None), ("test", 9, -1)):
        rows = {
            "text": [f"{split} w{i}" for i in range(count)],
            "label": [i % 2 if label is None else label for i in range(count)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(home / f"{split}-00000-of-00001.parquet")
    return home


def test_a_data_set_of_datasets(build, folder):
    data = build(path=str(folder), test_split="validation")
    assert data.class_names == ("no", "yes")
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (34, 6, 8)
    assert data.test_set.texts[0] == "validation w0"
    with pytest.raises(UserError, match="set, test: label -1 in row 1 is out of range, expected 0 to 1"):
        build(path=str(folder))
    (folder / "test-00000-of-00001.parquet").unlink()
    assert len(build(path=str(folder)).test_set) == 8
    (folder / "validation-00000-of-00001.parquet").unlink()
    assert len(build(path=str(folder)).test_set) == 4


def test_csv(build, tmp_path):
    file = tmp_path / "a.csv"
    rows = "\n".join(f"{i},{i % 2}" for i in range(1000, 1040))
    file.write_text(f"text,label\n{rows}\n")
    data = build(path=str(file))
    assert data.class_names == ("0", "1")
    assert {len(text) for text in data.train_set.texts} == {4}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "txt"}, "train.parquet: text='txt', but it has no such column; did you mean 'text'? Choices: blue,"),
        ({"text_pair": "othr"}, "text_pair='othr', but it has no such column; did you mean 'other'?"),
        ({"label": "labels"}, "label='labels', but it has no such column; did you mean 'label'?"),
        ({"text": "score"}, "text='score' is a column of double, expected text"),
        ({"label": "score"}, "labels are double, expected integers or names"),
        ({"classes": ["bad", "good"]}, "label 'fair' in row 2 is unknown"),
        ({"label": "number", "classes": ["x", "y"]}, "label 2 in row 3 is out of range, expected 0 to 1"),
        ({"path": "/nonexistent.csv"}, "/nonexistent.csv is missing"),
        ({"test_path": "/nonexistent.csv"}, "/nonexistent.csv is missing"),
        ({"path": "/nonexistent/set"}, "data set '/nonexistent/set' cannot be had"),
        ({"task": "regresion"}, "data table: task='regresion'; did you mean 'regression'?"),
        ({"task": "multilabel"}, "data table: task=multilabel needs label_columns"),
        ({"label_columns": ["red", "blue"]}, "label_columns=['red', 'blue'] with task=classification"),
        ({"label_columns": "red", "task": "multilabel"}, "data table: label_columns='red': expected a list"),
        ({"task": "multilabel", "label_columns": ["red", "number"]}, "number is 2 in row 3, expected 0 or 1"),
        ({"task": "multilabel", "label_columns": ["red", "blu"]}, "label_columns='blu', but it has no such column"),
        ({"classes": "ab"}, "data table: classes='ab': expected a list or null"),
        ({"classes": ["a", "b"], "task": "regression"}, "classes=['a', 'b'] with task=regression"),
        ({"config": "x"}, "data table: config='x' has no effect, as path="),
        ({"test_split": "x"}, "data table: test_split='x' has no effect, as path="),
        ({"path": "a/b", "test_path": "x"}, "test_path='x' has no effect, as path='a/b' is a data set of `datasets`"),
        ({"max_length": 7}, "max_length=7"),
        ({"validation": 60}, "validation=60 leaves nothing of 54 training samples"),
    ],
)
def test_bad_options(build, options, says):
    with pytest.raises(UserError) as caught:
        build(**options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_texts_are_counted(build, tmp_path):
    rows = columns()
    rows["text"][6] = " "
    rows["text"][9] = None
    pq.write_table(pa.table(rows), tmp_path / "holes.parquet")
    with pytest.raises(UserError, match="data table: 2 texts of the training part are empty, the first in row 7;"):
        build(path=str(tmp_path / "holes.parquet"))


def test_too_few_rows(build, tmp_path):
    for count in (0, 9):
        pq.write_table(pa.table(columns(60)).slice(0, count), tmp_path / "few.parquet")
        with pytest.raises(UserError, match=rf"few\.parquet has {count} rows, too few to take a test part from"):
            build(path=str(tmp_path / "few.parquet"), label="label", classes=NAMES)


def test_an_unknown_split(build, folder):
    with pytest.raises(UserError, match=r"has no split 'tets'; did you mean 'test'\?"):
        build(path=str(folder), test_split="tets")


def test_features_make_it_a_table_of_numbers(build):
    data = build(features=["number", "other"], label="score", validation=0.1)
    assert (data.task.name, data.input_shape) == ("regression", {"numbers": 1, "categories": [8]})
    assert (data.train_samples, len(data.val_set), len(data.test_set)) == (49, 5, 6)


def test_so_does_a_file_without_texts(build, tmp_path):
    rows = columns()
    del rows["text"]
    pq.write_table(pa.table(rows), tmp_path / "numbers.parquet")
    data = build(path=str(tmp_path / "numbers.parquet"))
    assert (data.task.name, data.class_names) == ("classification", NAMES)
    assert data.input_shape == {"numbers": 4, "categories": [8]}
    with pytest.raises(UserError, match="text='text', but it has no such column"):
        build(path=str(tmp_path / "numbers.parquet"), text="text")


def test_numbers_of_a_data_set_of_datasets(build, folder):
    data = build(path=str(folder), features=["text"], categories=["text"], test_split="validation")
    assert (data.task.name, data.class_names) == ("classification", ("no", "yes"))
    assert len(data.test_set) == 8
    assert data.test_set.labels.tolist() == [0, 1] * 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "text", "features": ["score"]}, "features=['score'] has no effect on a table of texts; leave it out"),
        ({"unit": "m"}, "data table: unit='m' has no effect on a table of texts"),
        ({"features": ["score"], "objective": "mlm"}, "features=['score'] has no effect on a table of texts"),
        ({"features": "score"}, "data table: features='score': expected a list or null"),
        (
            {"features": ["score"], "test_path": "x.csv", "test_share": 0.5},
            "test_share=0.5 has no effect with test_path",
        ),
        ({"features": ["score"], "test_share": 0}, "test_share=0, expected a share below 1 or a number of rows"),
        ({"features": ["score"], "validation": "many"}, "data table: validation='many': expected a number or null"),
        ({"features": ["score"], "label": "labl"}, "label='labl', but it has no such column; did you mean 'label'?"),
        ({"features": ["score"], "path": "/nonexistent.csv"}, "/nonexistent.csv is missing"),
        ({"validation": 0.5}, "validation=0.5, expected an integer of at least 1"),
    ],
)
def test_bad_options_of_numbers(build, options, says):
    with pytest.raises(UserError) as caught:
        build(**options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
