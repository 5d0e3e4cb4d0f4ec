import gzip
import struct

import pytest
import torch

from lighten.data.idx import read_idx
from lighten.errors import UserError


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


@pytest.fixture
def pixels():
    return torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("gz", [False, True])
def test_reads_plain_and_gzipped(tmp_path, pixels, gz):
    name = "images.gz" if gz else "images"
    (tmp_path / name).write_bytes(gzip.compress(idx(pixels)) if gz else idx(pixels))
    assert torch.equal(read_idx(tmp_path / "images", 3), pixels)


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("images", lambda b: b[:-1], "is no complete idx file of 3 dimensions"),
        ("images", lambda b: b + b"x", "is no complete idx file"),
        ("images", lambda b: b"\0\0\x0d\x03" + b[4:], "is no complete idx file"),
        ("images", lambda b: b[:4] + b"\xff" * 12, "is no complete idx file"),
        ("images.gz", lambda b: gzip.compress(b + bytes(1 << 24)), "is no complete idx file"),
        ("images", lambda b: b"", "is no complete idx file"),
        ("images.gz", lambda b: gzip.compress(b)[:-9], "cannot be read"),
        ("images.gz", lambda b: b, "cannot be read"),
        ("other", lambda b: b, "is missing, also with .gz"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, pixels, name, spoil, says):
    (tmp_path / name).write_bytes(spoil(idx(pixels)))
    with pytest.raises(UserError) as caught:
        read_idx(tmp_path / "images", 3)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_where_images_are_expected(tmp_path):
    (tmp_path / "images").write_bytes(idx(torch.zeros(5, dtype=torch.uint8)))
    with pytest.raises(UserError, match="3 dimensions"):
        read_idx(tmp_path / "images", 3)
