import io

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lighten.data.images import Images
from lighten.data.parquet import decode, encode


def images(channels):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, channels, 6, 7), generator=draw, dtype=torch.uint8)
    return Images(pixels[:3], torch.tensor([2, 0, 1]), pixels[3:], torch.tensor([1, 2]))


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(channels):
    before = images(channels)
    after = decode(encode(before))
    for part in vars(before):
        assert torch.equal(getattr(before, part), getattr(after, part)), part


def test_same_images_give_the_same_bytes():
    assert encode(images(1)) == encode(images(1))


def test_any_reader_of_parquet_and_png_can_open_it():
    table = pq.read_table(io.BytesIO(encode(images(1))))
    assert table["split"].to_pylist() == ["train"] * 3 + ["test"] * 2
    picture = Image.open(io.BytesIO(table["image"][0].as_py()))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (7, 6))
