"""Augmentation of images as a function of (seed, epoch, sample): flip, crop and rescale, colour, erasing, mixing.

Random numbers come from counters (:func:`lighten.training.order.draw`); what they say is done by Pillow.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from lighten.errors import UserError
from lighten.training.order import draw, draw_below

_RATIO = np.log(4 / 3)
"""A crop's sides are to each other as the image's, times up to 4/3 or 3/4 (Szegedy et al. 2015)."""

_ERASED = (0.02, 1 / 3)
"""Shares of the area of what is erased (Zhong et al. 2017, with its usual ratios of sides, 0.3 to 3.3)."""

_DECISIONS = (
    "area", "ratio", "top", "left", "flip", "brightness", "contrast", "saturation", "erase", "erase_area",
    "erase_ratio", "erase_top", "erase_left", "mix", "share", "cut_top", "cut_left",
)  # fmt: skip
_FIRST_STREAM, _PARTNER = 100, 99
"""Streams of draws; the order of samples has others."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images.

    Args:
        seed: of the draws.
        flip: left to right, every second time.
        crop: least share of the area that is cut out and drawn out again to the image's size; 1 leaves it whole.
        colour: brightness, contrast and saturation are multiplied by up to 1 ± this; 0 leaves them.
        erase: share of images that have a rectangle of the mean colour put in.
        mixup: share of images that a second one is mixed into, by up to half (Zhang et al. 2018).
        cutmix: share of images that a rectangle of a second one is put into, up to half of the area (Yun et al. 2019).

    Raises:
        UserError: if a value is out of range.
    """

    seed: int
    flip: bool = True
    crop: float = 0.5
    colour: float = 0.2
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"crop={self.crop!r}, expected a share of the area above 0, at most 1 (which is none)")
        for key in ("colour", "erase", "mixup", "cutmix"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"{key}={getattr(self, key)!r}, expected 0 (none) to 1")
        if self.mixup + self.cutmix > 1:
            raise UserError(f"mixup={self.mixup} and cutmix={self.cutmix} come to more than all images; lower one")

    def draw(self, epochs: np.ndarray, samples: np.ndarray) -> dict[str, np.ndarray]:
        """Return one number in [0, 1) for each sample and each thing to be decided, by its name."""
        return {
            name: (draw(self.seed, epochs, samples, stream=stream) >> np.uint64(11)) / float(2**53)
            for stream, name in enumerate(_DECISIONS, _FIRST_STREAM)
        }

    def partners(self, epochs: np.ndarray, samples: np.ndarray, count: int) -> np.ndarray:
        """Return the sample below ``count`` that each may be mixed with."""
        return draw_below(count, self.seed, epochs, samples, stream=_PARTNER)


@dataclass(frozen=True)
class Mixing:
    """What becomes of a batch of images and their partners.

    Attributes:
        mixed: bool (N,), by mixup.
        cut: bool (N,), by cutmix.
        shares: float32 (N,), what is left of the image itself, in [0.5, 1]; 1 where nothing is mixed.
        boxes: int (N, 4): top, left, bottom and right of what cutmix puts in.
    """

    mixed: np.ndarray
    cut: np.ndarray
    shares: np.ndarray
    boxes: np.ndarray


def crop_box(size: tuple[int, int], area: float, ratio: float, top: float, left: float) -> tuple[float, ...]:
    """Return left, top, right and bottom of a part of an image.

    Args:
        size: (height, width).
        area: share of it, in (0, 1].
        ratio: the part's width by its height, over the image's.
        top: where it lies, from 0 to 1.
        left: likewise.
    """
    height = min(1.0, np.sqrt(area / ratio)) * size[0]
    width = min(1.0, np.sqrt(area * ratio)) * size[1]
    y, x = top * (size[0] - height), left * (size[1] - width)
    return x, y, min(x + width, size[1]), min(y + height, size[0])


def cut_box(how: Augmentation, draws: dict[str, float], size: tuple[int, int]) -> tuple[float, ...]:
    """Return left, top, right and bottom of the part of an image of ``size`` (height, width) that is cut out."""
    return crop_box(
        size,
        how.crop + (1 - how.crop) * draws["area"],
        float(np.exp(_RATIO * (2 * draws["ratio"] - 1))),
        draws["top"],
        draws["left"],
    )


def geometry(how: Augmentation, draws: dict[str, float], image: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Return an image, mask or target picture, uint8 (H, W) or (H, W, C), cut out, drawn out and flipped."""
    if how.crop < 1:
        box = cut_box(how, draws, image.shape[:2])
        way = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        size = image.shape[1], image.shape[0]
        image = np.asarray(_picture(image).resize(size, way, box)).reshape(image.shape)  # type: ignore[arg-type]
    return image[:, ::-1] if how.flip and draws["flip"] < 1 / 2 else image


def colours(how: Augmentation, draws: dict[str, float], image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (H, W, C), with other brightness, contrast and saturation."""
    if not how.colour:
        return image
    changed = _picture(image)
    enhancers: list[tuple[str, Any]] = [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)]
    if image.shape[2] > 1:
        enhancers.append(("saturation", ImageEnhance.Color))
    for name, enhancer in enhancers:
        changed = enhancer(changed).enhance(1 + how.colour * (2 * draws[name] - 1))
    return np.asarray(changed).reshape(image.shape)


def erased(how: Augmentation, draws: dict[str, float], image: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (H, W, C), with a rectangle of ``fill`` (C,) where the draw says so."""
    if draws["erase"] >= how.erase:
        return image
    least, most = _ERASED
    ratio = float(np.exp(np.log(3.3) * (2 * draws["erase_ratio"] - 1)))
    box = crop_box(
        image.shape[:2], least + (most - least) * draws["erase_area"], ratio, draws["erase_top"], draws["erase_left"]
    )
    left, top, right, bottom = (round(side) for side in box)
    image = image.copy()
    image[top:bottom, left:right] = fill
    return image


def mixing(how: Augmentation, draws: dict[str, np.ndarray], size: tuple[int, int]) -> Mixing:
    """Return what mixup and cutmix do to the images of a batch, of ``size`` (height, width)."""
    mixed = draws["mix"] < how.mixup
    cut = ~mixed & (draws["mix"] < how.mixup + how.cutmix)
    own = 1 - draws["share"] / 2
    sides = np.sqrt(1 - own)
    height, width = (np.round(side * sides).astype(int) for side in size)
    top = np.round(draws["cut_top"] * (size[0] - height)).astype(int)
    left = np.round(draws["cut_left"] * (size[1] - width)).astype(int)
    boxes = np.stack([top, left, top + height, left + width], 1)
    shares = np.where(cut, 1 - height * width / (size[0] * size[1]), np.where(mixed, own, 1.0))
    return Mixing(mixed, cut, shares.astype(np.float32), boxes)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image))
