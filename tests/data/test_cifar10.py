import datasets
import numpy as np
import pytest
from PIL import Image

from lighten.data import build_data
from lighten.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A data set of the hub's columns as a local folder of Parquet files."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    draw = np.random.default_rng(0)
    pixels = {}
    for split, count in (("train", 20), ("test", 10)):
        pixels[split] = draw.integers(0, 256, (count, 32, 32, 3), np.uint8)
        rows = {"img": [Image.fromarray(p) for p in pixels[split]], "label": [i % 10 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    return tmp_path, pixels


def test_images_and_labels_arrive_channels_first(folder, monkeypatch, tmp_path):
    path, pixels = folder
    data = build_data("cifar10", path=str(path), validation=10, batch_size=10)
    data.setup("fit")
    assert data.images.train.shape == (20, 3, 32, 32)
    assert (data.images.train.numpy().transpose(0, 2, 3, 1) == pixels["train"]).all()
    assert (data.images.test.numpy().transpose(0, 2, 3, 1) == pixels["test"]).all()
    assert data.images.test_labels.tolist() == list(range(10))
    inputs, _ = next(iter(data.train_dataloader()))
    assert inputs.shape == (10, 3, 32, 32)


def test_no_network_and_no_cache_is_told_in_one_line(monkeypatch):
    def refuse(_):
        raise ConnectionError("Couldn't reach the hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError) as caught:
        build_data("cifar10").prepare_data()
    assert "data set 'uoft-cs/cifar10' cannot be had from the hub" in str(caught.value)
    assert "Couldn't reach the hub" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_columns_are_told(folder, monkeypatch):
    path, _ = folder
    split = datasets.load_dataset(str(path)).rename_column("img", "picture")
    monkeypatch.setattr(datasets, "load_dataset", lambda _: split)
    with pytest.raises(UserError, match="img"):
        build_data("cifar10").prepare_data()
