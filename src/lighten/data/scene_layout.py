"""Where the garments of a scene lie, and how they are painted: integers alone, so the same bits on every machine."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.training.order import draw, draw_below

EDGE = 28
"""Pixels a side of a source image."""
VISIBLE = 16
"""A garment is where its image is brighter than this, of 255; what is darker lets the background through."""
BRIGHTEST = 96
"""Corners of the background are darker than this, of 255."""

_SEED = 20260911
"""Any constant would do; the scenes of all runs hang on this one."""
_COUNT, _CELL, _SOURCE, _SIDE, _DOWN, _RIGHT, _CORNER = range(1, 8)


@dataclass(frozen=True)
class Layout:
    """Garments of scenes, in the order in which they are painted.

    Attributes:
        counts: int64 (scenes,), how many each has; those beyond it are not painted.
        sources: int64 (scenes, items), which source image.
        boxes: int64 (scenes, items, 3): first row, first column, side.
        corners: int64 (scenes, 4), grey levels of the background: top left, top right, bottom left, bottom right.
    """

    counts: np.ndarray
    sources: np.ndarray
    boxes: np.ndarray
    corners: np.ndarray


def draw_counts(part: int, scenes: int, items: int) -> np.ndarray:
    """Return how many garments each scene has, 1 to ``items``, as int64."""
    return 1 + draw_below(items, _SEED, part, np.arange(scenes), stream=_COUNT)


def draw_layout(part: int, scenes: int, *, size: int, items: int, sources: int) -> Layout:
    """Return the layout of a part's scenes, a function of its arguments alone.

    The canvas is divided into as few equal cells, as many down as across, as hold ``items``. Each garment has a cell
    of its own, a side of 3/4 to 4/3 of the cell's, at most the canvas's, and a centre up to 1/6 of it off the cell's;
    so neighbours may overlap, and none is covered whole.

    Args:
        part: number of the part: train, validation or test.
        scenes: how many.
        size: pixels a side of the canvas.
        items: garments of a scene at most.
        sources: images to choose from.
    """
    across = int(np.ceil(np.sqrt(items)))
    cell = size // across
    scene = np.arange(scenes)[:, None]
    item = np.arange(items)

    def below(limit: int, stream: int) -> np.ndarray:
        return draw_below(limit, _SEED, part, scene, stream=stream + 8 * item)

    places = np.argsort(draw(_SEED, part, scene, stream=_CELL + 8 * np.arange(across**2)), kind="stable")[:, :items]
    least, most = 3 * cell // 4, min(4 * cell // 3, size)
    sides = least + below(most - least + 1, _SIDE)
    corner = []
    for place, stream in ((places // across, _DOWN), (places % across, _RIGHT)):
        centre = place * cell + cell // 2 + below(2 * (cell // 6) + 1, stream) - cell // 6
        corner.append(np.clip(centre - sides // 2, 0, size - sides))
    return Layout(
        draw_counts(part, scenes, items),
        below(sources, _SOURCE),
        np.stack([*corner, sides], axis=2),
        draw_below(BRIGHTEST, _SEED, part, scene, stream=_CORNER + 8 * np.arange(4)),
    )


def paint(layout: Layout, pixels: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return pictures uint8 (scenes, 1, ``size``, ``size``) and masks uint8 (scenes, ``size``, ``size``).

    Masks are 0 where no garment is, else its class + 1.

    Args:
        layout: of the scenes.
        pixels: of the source images, uint8 (N, 1, 28, 28).
        labels: of these, int64 (N,).
        size: pixels a side.
    """
    pictures, items, _ = paint_items(layout, pixels, size)
    classes = F.pad(labels.to(torch.uint8)[torch.from_numpy(layout.sources)] + 1, (1, 0))
    return pictures, torch.stack([of[item.long()] for of, item in zip(classes, items, strict=True)])


def paint_items(layout: Layout, pixels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, and which garment is seen where.

    Args:
        layout: of the scenes.
        pixels: of the source images, uint8 (N, 1, 28, 28).
        size: pixels a side.

    Returns:
        Pictures uint8 (scenes, 1, ``size``, ``size``); int16 (scenes, ``size``, ``size``), 0 where no garment is, else
        its number in the layout + 1; and pixels of each whole garment, int64 (scenes, items), 0 for those not painted.
    """
    pictures = _background(layout.corners, size)
    items = torch.zeros(len(pictures), size, size, dtype=torch.int16)
    areas = torch.zeros(layout.sources.shape, dtype=torch.int64)
    values = pixels[:, 0].float()
    for scene, count in enumerate(layout.counts.tolist()):
        sources, boxes = layout.sources[scene, :count].tolist(), layout.boxes[scene, :count].tolist()
        for item, (source, (top, left, side)) in enumerate(zip(sources, boxes, strict=True)):
            there = slice(top, top + side), slice(left, left + side)
            garment = resize(values[source], side)
            seen = garment > VISIBLE
            pictures[scene][there].copy_(torch.where(seen, garment, pictures[scene][there]))
            items[scene][there].masked_fill_(seen, item + 1)
            areas[scene, item] = seen.sum()
    return pictures[:, None], items, areas


def resize(image: Tensor, side: int) -> Tensor:
    """Return a source image of another side, uint8: each pixel is the mean of the area that it covers, rounded.

    Args:
        image: whole numbers from 0 to 255 as float32 (28, 28); sums of them stay below 2**24, so they are exact.
        side: pixels.
    """
    weights = _areas(side)
    return ((weights @ image @ weights.T + EDGE**2 // 2) / EDGE**2).floor().to(torch.uint8)


@cache
def _areas(side: int) -> Tensor:
    """Return how much of each source row lies in each row of the result, in 1/``side`` of a source row."""
    to, of = torch.arange(side)[:, None], torch.arange(EDGE)
    begin = torch.maximum(to * EDGE, of * side)
    end = torch.minimum((to + 1) * EDGE, (of + 1) * side)
    return (end - begin).clamp(min=0).float()


def _background(corners: np.ndarray, size: int) -> Tensor:
    """Return grey levels between those of the corners, uint8 (scenes, size, size)."""
    last = size - 1
    right = np.arange(size)
    top = corners[:, :1] * (last - right) + corners[:, 1:2] * right
    bottom = corners[:, 2:3] * (last - right) + corners[:, 3:] * right
    down = right[:, None]
    levels = top[:, None] * (last - down) + bottom[:, None] * down
    return torch.from_numpy((levels // last**2).astype(np.uint8))
