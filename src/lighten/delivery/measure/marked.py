"""Boxes and points drawn on the picture that they are of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lighten.delivery.measure.exhibits import colours_of

_OTHER = (255, 255, 255)
"""Colour of a class that has none."""


def mark_colours(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class or point, by its name: lighter than those of masks, as lines are thin."""
    palette = colours_of(np.arange(1, len(names) + 1)[None], len(names) + 1)[0].astype(int)
    found = (palette + (255 - palette) // 4).tolist()
    return {name: (red, green, blue) for name, (red, green, blue) in zip(names, found, strict=True)}


def described(mark: Mapping[str, Any]) -> str:
    """Return what a mark is, and its odds where it has some."""
    odds = mark.get("odds")
    return str(mark["label"]) if odds is None else f"{mark['label']} {100 * odds:.0f} %"


def draw_marks(picture: Any, marks: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """Return a picture with its boxes and points, uint8 (height, width, 3).

    Args:
        picture: a ``PIL`` image.
        marks: ``box`` (x0, y0, x1, y1) or ``point`` (x, y) in its pixels, ``label`` and ``odds``; the first on top.
        names: of the classes or points, which say the colours.
    """
    from PIL import ImageDraw, ImageFont

    colours = mark_colours(names)
    shown = picture.convert("RGB")
    pen = ImageDraw.Draw(shown)
    broad = max(1, round(min(shown.size) / 200))
    font = ImageFont.load_default(max(9, round(min(shown.size) / 32)))
    for mark in reversed(marks):
        colour = colours.get(mark["label"], _OTHER)
        if "box" in mark:
            left, top, right, bottom = (round(side) for side in mark["box"])
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=broad)
            at = left, top
        else:
            x, y = mark["point"]
            pen.ellipse((x - 2 * broad, y - 2 * broad, x + 2 * broad, y + 2 * broad), outline=colour, width=broad)
            at = x + 3 * broad, y - 3 * broad
        _write(pen, at, described(mark), colour, font, shown.size)
    return np.asarray(shown)


def _write(pen: Any, at: tuple[float, float], text: str, colour: tuple[int, int, int], font: Any, size: Any) -> None:
    """Write on a plate of the mark's colour above a place, or below it at the upper edge."""
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
    wide, tall = x1 - x0 + 4, y1 - y0 + 3
    left = max(0, min(at[0], size[0] - wide))
    top = at[1] - tall if at[1] >= tall else at[1]
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.rectangle((left, top, left + wide, top + tall), fill=colour)
    pen.text((left + 2 - x0, top + 1 - y0), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
