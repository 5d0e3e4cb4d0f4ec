import numpy as np
import pytest
from picture_files import noise, truncate, write
from PIL import Image

from lighten.data.decode import Frame
from lighten.data.image_reader import ImageReader
from lighten.errors import UserError

READER = ImageReader(Frame((12, 16), "crop", 3), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_paths_images_bytes_and_arrays_in_one_batch(tmp_path):
    path = write(tmp_path / "x.png", noise())
    with Image.open(path) as image:
        (batch,), keywords = READER.read([path, str(path), path.read_bytes(), image, noise()])
    expected = ((noise() / 255 - READER.mean) / READER.std).transpose(2, 0, 1)
    assert keywords == {}
    assert tuple(batch.shape) == (5, 3, 12, 16)
    assert np.abs(batch.numpy() - expected).max() < 1e-5


def test_any_size_and_mode(tmp_path):
    sources = [noise(40, 20), noise(5, 9, 1), noise(30, 30, 4)]
    assert tuple(READER.read(sources)[0][0].shape) == (3, 3, 12, 16)


def test_an_image_of_somebody_else_stays_as_it_is(tmp_path):
    path = write(tmp_path / "x.jpg", noise(300, 400))
    with Image.open(path) as image:
        READER.read([image])
        assert image.size == (400, 300)
        assert image.mode == "RGB"


def test_what_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / "x.png", noise())
    truncate(path)
    for source, line in (
        (tmp_path, r"is a folder, expected an image; give its files, as .*/\*"),
        (tmp_path / "nowhere.png", r"nowhere\.png is not there; give the path of an image"),
        (str(path), r"x\.png cannot be read as an image \(.*truncated"),
        (b"no image", "a bytes cannot be read as an image"),
        (3.5, "a float cannot be read as an image"),
        (np.zeros((2, 2)), r"an array float64 \(2, 2\), expected uint8"),
    ):
        with pytest.raises(UserError, match=line):
            READER.read([source])
    with pytest.raises(UserError, match="no images are given"):
        READER.read([])
