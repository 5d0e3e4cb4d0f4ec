"""Which size and channels images are brought to: as asked for, else chosen from what there is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lighten.data.checks import first_line
from lighten.data.decode import COLOUR, CROP, GREY, PAD, Frame, is_grey, turned_size
from lighten.data.find_images import Found
from lighten.errors import UserError

MAX_SIDE = 224
"""Pixels that a chosen side has at most."""

MAX_LOOKED_AT = 2000
"""Images whose heads are read to choose; evenly spaced where there are more."""

_STEP = 16
"""Sides of images with masks or target pictures are chosen to be multiples, with boxes of twice this: such networks
halve them several times."""


@dataclass(frozen=True)
class Looks:
    """What images are to look like, as options say it; ``None``: chosen.

    Attributes:
        size: pixels of both sides, or (height, width).
        resize: one of ``RESIZES``; ``None``: boxes keep their whole picture (``pad``), else ``crop``.
        channels: 1 or 3.
        white: value of white in images of 16 bits.
    """

    size: int | Sequence[int] | None
    resize: str | None
    channels: int | None
    white: int


def choose_frames(found: Found, looks: Looks) -> tuple[Frame, Frame | None]:
    """Return the frame of the images, and that of masks (with no channels) or target pictures, where there are.

    Raises:
        UserError: if no image can be read.
    """
    sizes, grey = _heads(found.files)
    size = sizes_of(looks.size) if looks.size is not None else _chosen(sizes, _step(found))
    channels = looks.channels if looks.channels is not None else GREY if grey else COLOUR
    resize = looks.resize or (PAD if found.boxes else CROP)
    frame = Frame(size, resize, channels, looks.white)
    if not found.seconds:
        return frame, None
    second = 0
    if found.task == "image":
        second = GREY if _heads(found.seconds)[1] else COLOUR
    return frame, Frame(size, resize, second, looks.white)


def sizes_of(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        UserError: if it is neither one whole number from 1 on nor two.
    """
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    right = [isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides]
    if len(sides) != 2 or not all(right):
        raise UserError(f"size={size!r}, expected pixels of a side, as 224, or [height, width]")
    return sides[0], sides[1]


def _step(found: Found) -> int:
    return _STEP if found.seconds else 2 * _STEP if found.boxes else 1


def _chosen(sizes: np.ndarray, step: int) -> tuple[int, int]:
    first = sizes[0]
    if (sizes == first).all() and first.max() <= MAX_SIDE:
        height, width = (int(side) for side in first)
    else:
        height = width = min(MAX_SIDE, round(float(np.median(sizes.min(1)))))
    height, width = (side // step * step if side >= 2 * step else side for side in (height, width))
    return height, width


def _heads(files: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Return sizes (N, 2), and whether all images are grey, of as many images as are looked at and can be read."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_LOOKED_AT)).round().astype(int))
    sizes, grey, reason = [], True, ""
    for index in chosen.tolist():
        try:
            with Image.open(files[index]) as image:
                sizes.append(turned_size(image))
                grey = grey and is_grey(image)
        except Exception as error:
            reason = first_line(error)
    if not sizes:
        raise UserError(f"none of {len(chosen)} images can be read, the last is {files[-1]} ({reason}); replace them")
    return np.array(sizes), grey
