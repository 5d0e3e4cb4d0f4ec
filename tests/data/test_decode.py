import io

import numpy as np
import pytest
from picture_files import noise, write
from PIL import Image, ImageOps

from lighten.data.decode import (
    Frame,
    decode,
    decode_mask,
    frame_of,
    is_grey,
    normalise,
    open_image,
    settings_of,
    turned_size,
)  # fmt: skip
from lighten.errors import UserError


def frame(height=12, width=16, channels=3, resize="crop", white=65535):
    return Frame((height, width), resize, channels, white)


def read(path, **changes):
    return decode(open_image(path), frame(**changes))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_of_exif_as_pillow_turns_it(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"x.{suffix}", noise(), exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert turned_size(image) == expected.shape[:2]
    assert np.array_equal(read(path, height=expected.shape[0], width=expected.shape[1]), expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp", "ppm", "tga", "jp2"])
def test_grey_in_formats_without_loss(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {"irreversible": False} if suffix == "jp2" else {}
    path = write(tmp_path / f"x.{suffix}", noise(channels=1), **options)
    for channels in (1, 3):
        assert np.array_equal(read(path, channels=channels), np.stack([noise(channels=1)] * channels, 2))


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_transparent_is_white():
    pixels = noise()
    alpha = noise(channels=1, seed=1)
    expected = pixels * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    source = saved(Image.fromarray(np.dstack([pixels, alpha])))
    assert np.abs(read(source).astype(int) - expected).max() <= 1
    grey = saved(Image.fromarray(np.dstack([pixels[..., 0], alpha])))
    expected = pixels[..., 0] * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(read(grey, channels=1)[..., 0].astype(int) - expected).max() <= 1


def test_palette_with_and_without_a_transparent_colour():
    pixels = (noise() // 128 * 255).astype(np.uint8)
    image = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    assert np.array_equal(read(saved(image)), pixels)
    which = np.asarray(image) == 3
    expected = np.where(which[..., None], 255, pixels)
    assert np.array_equal(read(saved(image, transparency=3)), expected)
    assert np.array_equal(read(saved(image, transparency=bytes([255, 255, 255, 0]))), expected)


def test_one_bit():
    bits = noise(channels=1) > 127
    assert np.array_equal(read(saved(Image.fromarray(bits)), channels=1)[..., 0], bits * np.uint8(255))


def test_cmyk(tmp_path):
    image = Image.fromarray(noise(2, 2)).convert("CMYK")
    path = tmp_path / "x.tiff"
    image.save(path)
    cmyk = np.asarray(image).astype(int)
    expected = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    assert np.abs(read(path, height=2, width=2).astype(int) - expected).max() <= 2


def test_sixteen_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (12, 16)).astype(np.uint16)
    for suffix in ("png", "tiff"):
        path = write(tmp_path / f"x.{suffix}", values)
        assert np.array_equal(read(path, channels=1)[..., 0], np.round(values / 257))
        assert np.array_equal(
            read(path, channels=1, white=4095)[..., 0], np.minimum(np.round(values / 4095 * 255), 255)
        )


def test_floating_point_numbers_are_refused(tmp_path):
    path = write(tmp_path / "x.tiff", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="it holds floating point numbers, expected 8 or 16 bits"):
        read(path)


def test_first_picture_of_several(tmp_path):
    frames = [Image.fromarray(np.full((12, 16), shade, np.uint8)) for shade in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "x.gif", channels=1) == 10).all()


def ramp(height, width):
    """Values that say where a pixel lies: the red one its column, the green one its row, each from 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.dstack([
        (columns + 0.5) * 255 / width, (rows + 0.5) * 255 / height, np.full((height, width), 90)
    ]).round().astype(np.uint8)  # fmt: skip


def test_crop_cuts_what_is_too_long_on_both_sides():
    found = decode(Image.fromarray(ramp(100, 300)), frame(50, 50))
    assert np.abs(found[25, :, 0] - (100 + (np.arange(50) + 0.5) * 2) * 255 / 300).max() <= 1
    assert np.abs(found[:, 25, 1] - (np.arange(50) + 0.5) * 255 / 50).max() <= 3


def test_stretch_shows_all():
    found = decode(Image.fromarray(ramp(100, 300)), frame(50, 50, resize="stretch"))
    assert np.abs(found[25, 2:-2, 0] - ((np.arange(50) + 0.5) * 255 / 50)[2:-2]).max() <= 1


def test_pad_adds_black_evenly():
    found = decode(Image.fromarray(ramp(100, 300)), frame(60, 60, resize="pad"))
    assert not found[:20].any()
    assert not found[40:].any()
    assert (found[20:40, :, 2] == 90).all()
    mask, seen = decode_mask(Image.fromarray(np.ones((100, 300), np.uint8)), frame(60, 60, resize="pad"))
    assert (mask[:20] == 255).all()
    assert (mask[20:40] == 1).all()
    assert np.flatnonzero(seen).tolist() == [1]


def test_large_jpeg_that_is_decoded_smaller_is_the_same_picture(tmp_path):
    path = write(tmp_path / "x.jpg", ramp(800, 1200), quality=95)
    with Image.open(path) as image:
        whole = np.asarray(image.convert("RGB").resize((60, 40), Image.Resampling.BILINEAR))
    assert np.abs(read(path, height=40, width=60).astype(int) - whole).max() <= 3


def test_masks_keep_their_numbers():
    mask = np.array([[0, 1], [7, 255]], np.uint8)
    palette = Image.fromarray(mask)
    palette.putpalette(bytes(range(256)) * 3)
    for image in (Image.fromarray(mask), palette, Image.fromarray(mask.astype(np.uint16)),
                  Image.fromarray(np.dstack([mask] * 3)), Image.fromarray(mask.astype(np.int32))):  # fmt: skip
        found, seen = decode_mask(image, frame(4, 4))
        assert np.array_equal(found, mask.repeat(2, 0).repeat(2, 1))
        assert np.flatnonzero(seen).tolist() == [0, 1, 7, 255]
    assert np.array_equal(decode_mask(Image.fromarray(mask > 0), frame(2, 2))[0], mask > 0)


def test_masks_with_colours_or_large_numbers_are_refused():
    with pytest.raises(UserError, match="it has colours, expected one number a pixel"):
        decode_mask(Image.fromarray(noise()), frame())
    with pytest.raises(UserError, match="it holds 300, expected whole numbers from 0 to 255"):
        decode_mask(Image.fromarray(np.full((2, 2), 300, np.uint16)), frame())


def test_grey_is_seen_without_decoding():
    palette = Image.fromarray(noise(channels=1)).convert("P")
    for image, expected in (
        (Image.fromarray(noise(channels=1)), True), (Image.fromarray(noise()), False), (palette, True),
        (Image.fromarray(noise()).convert("P", palette=Image.Palette.ADAPTIVE), False),
        (Image.fromarray(noise(channels=1).astype(np.uint16)), True),
    ):  # fmt: skip
        assert is_grey(Image.open(io.BytesIO(saved(image)))) is expected


def test_sources_of_all_kinds_are_alike(tmp_path):
    path = write(tmp_path / "x.png", noise())
    expected = read(path)
    image = Image.open(path)
    for source in (str(path), path.read_bytes(), image, noise()):
        assert np.array_equal(read(source), expected)
    image.close()
    assert np.array_equal(read(noise(channels=1)[..., None], channels=1)[..., 0], noise(channels=1))
    with pytest.raises(UserError, match=r"an array float32 \(2, 2\), expected uint8 \(height, width\) or"):
        open_image(np.zeros((2, 2), np.float32))


def test_frame_and_back():
    assert frame_of(settings_of(frame(white=4095))) == frame(white=4095)


def test_normalise_as_written_out():
    pixels = np.stack([noise(seed=seed) for seed in range(3)])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.abs(normalise(pixels, mean, std).numpy() - expected).max() < 1e-5


def test_a_file_that_is_no_image_is_told_without_objects_in_memory(tmp_path):
    for content, words in ((b"", "it is empty"), (b"text", "it is no image that Pillow reads")):
        with pytest.raises(ValueError, match=f"^{words}$"):
            open_image(content)


def test_masks_with_transparency_and_in_a_format_that_changes_numbers():
    values = np.array([[0, 1], [2, 0]], np.uint8)
    frame = Frame((2, 2), "crop", 1)
    for mode in ("LA", "RGBA"):
        mask, seen = decode_mask(Image.fromarray(values).convert(mode), frame)
        assert mask.tolist() == values.tolist()
        assert np.flatnonzero(seen).tolist() == [0, 1, 2]
    content = io.BytesIO()
    Image.fromarray(255 * (values > 0).astype(np.uint8)).save(content, "JPEG")
    with pytest.raises(UserError, match="a mask in JPEG, which changes the numbers of pixels; save masks as PNG"):
        decode_mask(open_image(content.getvalue()), frame)
