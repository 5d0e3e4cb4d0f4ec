import struct
from importlib.resources import files

import numpy as np
import pytest
import torch

from lighten.data import build_data, fashion_mnist
from lighten.data.embedded import EmbeddedFile
from lighten.data.split import stratified
from lighten.errors import UserError


@pytest.fixture(scope="module")
def data():
    module = build_data("fashion_mnist", batch_size=100)
    module.setup("fit")
    return module


def test_embedded_subset_is_stratified(data):
    assert data.images.train.shape == (12_000, 1, 28, 28)
    assert torch.bincount(data.images.train_labels).tolist() == [1200] * 10
    assert torch.bincount(data.images.test_labels).tolist() == [200] * 10
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (11_000, 1000, 2000)


def test_statistics_are_those_of_the_images(data):
    values = data.images.train.double() / 255
    assert data.mean[0] == pytest.approx(values.mean().item(), abs=1e-3)
    assert data.std[0] == pytest.approx(values.std().item(), abs=1e-3)


def test_classes_can_be_told_apart_by_a_nearest_centroid(data):
    """Labels belong to their images: centroids reach about 68 % on the full set (published as a baseline)."""
    images = data.images
    train, test = images.train.flatten(1).float(), images.test.flatten(1).float()
    centroids = torch.stack([train[images.train_labels == c].mean(0) for c in range(10)])
    accuracy = (torch.cdist(test, centroids).argmin(1) == images.test_labels).float().mean()
    assert 0.63 < accuracy < 0.73


def test_facts(data):
    assert data.name == "fashion_mnist"
    assert data.options == {"source": "embedded", "folder": None, "validation": 1000, "augment": True, "views": None}
    assert data.num_classes == len(data.class_names) == 10
    assert data.input_shape == (1, 28, 28)
    assert "MIT" in data.licence
    assert len(bytes.fromhex(data.fingerprint)) == 32


def test_the_notice_is_kept():
    notice = (files("lighten.data") / "LICENSE-fashion-mnist").read_text()
    assert "Copyright © 2017 Zalando SE" in notice
    assert "The above copyright notice and this permission notice shall be included" in notice


@pytest.fixture
def moved(tmp_path, monkeypatch):
    path = tmp_path / "fashion_mnist.parquet"
    monkeypatch.setattr(EmbeddedFile, "path", path)
    fashion_mnist.read_embedded.cache_clear()
    yield path
    fashion_mnist.read_embedded.cache_clear()


def test_a_missing_file_is_told_in_one_line(moved):
    with pytest.raises(UserError) as caught:
        build_data("fashion_mnist").prepare_data()
    assert str(caught.value) == (
        f"{moved} cannot be read (No such file or directory); "
        "reinstall lighten, or run scripts/build_fashion_mnist.py in its repository"
    )


def test_a_flipped_bit_is_found_before_decoding(moved):
    content = bytearray((files("lighten.data") / "fashion_mnist.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    moved.write_bytes(content)
    with pytest.raises(UserError, match=r"fashion_mnist\.parquet is damaged: its SHA-256 is") as caught:
        build_data("fashion_mnist").prepare_data()
    assert "\n" not in str(caught.value)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_folder(tmp_path):
    draw = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 30), ("t10k", 20)):
        parts[name] = draw.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(parts[name][0]))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(parts[name][1]))
    data = build_data("fashion_mnist", source="idx", folder=str(tmp_path), validation=10)
    data.setup("fit")
    assert (data.images.train[:, 0].numpy() == parts["train"][0]).all()
    assert (data.images.test[:, 0].numpy() == parts["t10k"][0]).all()
    assert data.images.test_labels.tolist() == parts["t10k"][1].tolist()
    assert torch.equal(data.val_set.pixels, data.images.train[stratified(data.images.train_labels, 10)[1]])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "idxx"}, "source='idxx'; did you mean 'idx'?"),
        ({"source": "idx"}, "source='idx' with folder=None"),
        ({"folder": "x"}, "source='embedded' with folder='x'"),
        ({"source": "idx", "folder": "/nonexistent"}, "/nonexistent/train-images-idx3-ubyte is missing"),
        ({"sauce": "idx"}, "data fashion_mnist: no option 'sauce'; did you mean 'source'?"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(UserError) as caught:
        build_data("fashion_mnist", **options).prepare_data()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
