import numpy as np
import pytest
from picture_files import noise, write
from PIL import Image

from lighten.data.find_images import Found
from lighten.data.frame import Looks, choose_frames, sizes_of
from lighten.errors import UserError


def found(files, seconds=(), task="classification"):
    names = tuple(map(str, files))
    return Found(where="here", files=names, names=names, task=task, why="", seconds=tuple(map(str, seconds)))


def chosen(files, seconds=(), task="classification", **looks):
    given = {"size": None, "resize": "crop", "channels": None, "white": 65535}
    return choose_frames(found(files, seconds, task), Looks(**given | looks))


def write_sizes(tmp_path, *sizes, channels=3):
    return [write(tmp_path / f"{n}.png", noise(*size, channels)) for n, size in enumerate(sizes)]


def test_images_of_one_size_keep_it_up_to_224(tmp_path):
    assert chosen(write_sizes(tmp_path, (28, 20), (28, 20)))[0].size == (28, 20)
    assert chosen(write_sizes(tmp_path, (300, 20), (300, 20)))[0].size == (20, 20)


def test_else_the_median_of_the_shorter_sides(tmp_path):
    assert chosen(write_sizes(tmp_path, (40, 50), (61, 60), (90, 300)))[0].size == (60, 60)
    assert chosen(write_sizes(tmp_path, (400, 500), (600, 600), (30, 30)))[0].size == (224, 224)


def test_sides_as_exif_turns_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [write(tmp_path / f"{n}.jpg", noise(20, 40), exif=exif) for n in range(2)]
    assert chosen(files)[0].size == (40, 20)


def test_sides_with_masks_are_multiples_of_16(tmp_path):
    files = write_sizes(tmp_path, (50, 70), (50, 70))
    frame, second = chosen(files, files, "segmentation")
    assert frame.size == second.size == (48, 64)
    assert second.channels == 0
    small = write_sizes(tmp_path, (20, 20), (20, 20))
    assert chosen(small, small, "segmentation")[0].size == (20, 20)


def test_channels_are_grey_where_all_are(tmp_path):
    grey = write_sizes(tmp_path / "grey", (4, 4), (4, 4), channels=1)
    colour = write_sizes(tmp_path / "colour", (4, 4))
    assert chosen(grey)[0].channels == 1
    assert chosen([*grey, *colour])[0].channels == 3
    frame, second = chosen(colour * 2, grey + grey, "image")
    assert (frame.channels, second.channels) == (3, 1)
    assert chosen(grey, channels=3)[0].channels == 3


def test_what_is_asked_for(tmp_path):
    files = write_sizes(tmp_path, (40, 50))
    assert chosen(files, size=32)[0].size == (32, 32)
    assert chosen(files, size=[16, 24], resize="pad")[0].size == (16, 24)
    assert sizes_of((3, 4)) == (3, 4)


@pytest.mark.parametrize("size", [0, -1, True, [3], [3, 4, 5], [3, 0], [3.5, 4]])
def test_odd_sizes_are_refused(size):
    with pytest.raises(UserError, match="expected pixels of a side"):
        sizes_of(size)


def test_images_that_cannot_be_read_are_passed_over_unless_none_can(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert chosen([broken, *write_sizes(tmp_path, (9, 7))])[0].size == (9, 7)
    with pytest.raises(UserError, match=r"none of 1 images can be read, the last is .*broken\.png"):
        chosen([broken])


def test_of_very_many_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("lighten.data.frame.MAX_LOOKED_AT", 3)
    files = write_sizes(tmp_path, *[(10 + n, 10 + n) for n in range(5)])
    assert chosen(files)[0].size == (12, 12)
    assert np.prod(chosen(files)[0].size) == 144
