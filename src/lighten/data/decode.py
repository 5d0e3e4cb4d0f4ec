"""Image files as arrays: read by Pillow, turned as EXIF says, in grey or RGB, brought to one size."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lighten.errors import UserError

CROP, STRETCH, PAD = RESIZES = ("crop", "stretch", "pad")
"""How an image comes to another shape: what is too long is cut on both sides, all is drawn out, or black is added."""

GREY, COLOUR = 1, 3
"""Channels."""

IGNORED = 255
"""Of masks: what padding is, and what no class is."""

_GREY_MODES = ("1", "L", "LA", "La", "I")
_LOSSY = ("JPEG", "MPO")
_BYTE = 255
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNED = 5  # from here on, height and width change places
_DRAFT = 2.0
"""JPEG files are decoded at no less than so many times the size that is wanted: then nobody sees that it was less."""


@dataclass(frozen=True)
class Frame:
    """What every image is brought to.

    Attributes:
        size: (height, width).
        resize: one of ``RESIZES``.
        channels: 1 for grey, 3 for RGB.
        white: value of white in images of 16 bits.
    """

    size: tuple[int, int]
    resize: str
    channels: int
    white: int = 65535


def open_image(source: Any) -> Image.Image:
    """Return an image that is not decoded yet.

    Args:
        source: a path, the bytes of a file, an ``Image``, or an array uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Raises:
        UserError: for an array of another kind.
        Exception: any, for a file that is not one of an image.
    """
    if isinstance(source, Image.Image):
        return source.copy()
    if isinstance(source, np.ndarray):
        array = source[..., 0] if source.ndim == 3 and source.shape[2] == GREY else source
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
            raise UserError(
                f"an array {source.dtype} {source.shape}, expected uint8 (height, width) or (height, width, channels) "
                "with 1, 3 or 4 channels; convert it"
            )
        return Image.fromarray(array)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # its words name an object in memory
        raise ValueError("it is no image that Pillow reads" if content else "it is empty") from None


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) as EXIF turns it, without decoding."""
    width, height = image.size
    return (width, height) if _orientation(image) >= _TURNED else (height, width)


def is_grey(image: Image.Image) -> bool:
    """Return whether an image's mode has no colours, without decoding."""
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB") or [0], np.uint8).reshape(-1, 3) if image.getpalette() else None
        return colours is not None and bool((colours == colours[:, :1]).all())
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def decode(image: Image.Image, frame: Frame) -> np.ndarray:
    """Return an image as uint8 (H, W, C).

    Raises:
        Exception: any, if the file is damaged; ``ValueError`` for floating point numbers.
    """
    if image.format == "JPEG":
        height, width = _resized(turned_size(image), frame)
        if _orientation(image) >= _TURNED:
            height, width = width, height
        image.draft(None, (round(_DRAFT * width), round(_DRAFT * height)))
    image = in_channels(ImageOps.exif_transpose(image), frame.channels, frame.white)
    image = fit_size(image, frame, Image.Resampling.BILINEAR, fill=0)
    return np.asarray(image).reshape(*frame.size, frame.channels)


def decode_mask(image: Image.Image, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask as uint8 (H, W), and which of 256 values it has, bool (256,).

    Raises:
        UserError: if it has colours, or values above 255, or its format keeps no values.
    """
    if image.format in _LOSSY:
        raise UserError(f"a mask in {image.format}, which changes the numbers of pixels; save masks as PNG")
    image = ImageOps.exif_transpose(image)
    array = np.asarray(image)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == 3:
        colours = array.shape[2] if array.shape[2] not in (2, 4) else array.shape[2] - 1  # without transparency
        if not (array[..., :colours] == array[..., :1]).all():
            raise UserError("it has colours, expected one number a pixel (grey, or a palette)")
        array = array[..., 0]
    whole = array.dtype == np.uint8 or (array >= 0) & (array <= _BYTE) & (array == np.trunc(array))
    if not np.all(whole):
        raise UserError(f"it holds {array[~whole][0]:g}, expected whole numbers from 0 to 255")
    array = array.astype(np.uint8)
    seen = np.bincount(array.reshape(-1), minlength=256) > 0
    return np.asarray(fit_size(Image.fromarray(array), frame, Image.Resampling.NEAREST, fill=IGNORED)), seen


def in_channels(image: Image.Image, channels: int, white: int) -> Image.Image:
    """Return an image of any mode in ``L`` or ``RGB``; what is transparent lies on white.

    Raises:
        ValueError: for floating point numbers.
    """
    if image.mode == "F":
        raise ValueError("it holds floating point numbers, expected 8 or 16 bits; convert it")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) * np.float32(_BYTE / white)
        image = Image.fromarray(values.round().clip(0, _BYTE).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, "white")
        image.alpha_composite(over)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    return image.convert("L" if channels == GREY else "RGB")


def fit_size(image: Image.Image, frame: Frame, how: Image.Resampling, fill: int) -> Image.Image:
    """Return an image in a frame's size."""
    height, width = frame.size
    if (image.height, image.width) == frame.size:
        return image
    if frame.resize == STRETCH:
        return image.resize((width, height), how)
    if frame.resize == PAD:
        inner_height, inner_width = _resized((image.height, image.width), frame)
        out = Image.new(image.mode, (width, height), (fill,) * len(image.getbands()) if image.mode == "RGB" else fill)
        out.paste(
            image.resize((inner_width, inner_height), how), ((width - inner_width) // 2, (height - inner_height) // 2)
        )
        return out
    scale = min(image.height / height, image.width / width)
    top, left = (image.height - scale * height) / 2, (image.width - scale * width) / 2
    return image.resize((width, height), how, box=(left, top, left + scale * width, top + scale * height))


def placed(size: tuple[int, int], frame: Frame) -> tuple[float, float, float, float]:
    """Return where a whole image comes to lie in a frame: left, top, width and height in shares of the frame.

    They go beyond 0 to 1 where the image is cut.

    Args:
        size: (height, width) of the image.
        frame: that it is brought to.
    """
    height, width = frame.size
    if frame.resize == CROP:
        scale = min(size[0] / height, size[1] / width)
        tall, wide = size[0] / (scale * height), size[1] / (scale * width)
        return (1 - wide) / 2, (1 - tall) / 2, wide, tall
    inner_height, inner_width = _resized(size, frame)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left / width, top / height, inner_width / width, inner_height / height


def frame_of(settings: Any) -> Frame:
    """Return the frame that ``settings_of`` wrote."""
    height, width = settings["size"]
    return Frame((int(height), int(width)), settings["resize"], int(settings["channels"]), int(settings["white"]))


def settings_of(frame: Frame) -> dict[str, Any]:
    """Return a frame in JSON types."""
    return {"size": list(frame.size), "resize": frame.resize, "channels": frame.channels, "white": frame.white}


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Return uint8 (N, H, W, C) as a tensor float32 (N, C, H, W), by mean and deviation of values in [0, 1]."""
    import torch

    values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()
    return values.sub_(_BYTE * torch.tensor(mean).view(-1, 1, 1)).div_(_BYTE * torch.tensor(std).view(-1, 1, 1))


def _resized(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Return height and width of a whole image of ``size`` once it is scaled into, or over, the frame."""
    if frame.resize == STRETCH:
        return frame.size
    choose = min if frame.resize == PAD else max
    scale = choose(frame.size[0] / size[0], frame.size[1] / size[1])
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _orientation(image: Image.Image) -> int:
    if image.format is None or (image.format == "PNG" and "exif" not in image.info):  # PNG would be decoded to look
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
