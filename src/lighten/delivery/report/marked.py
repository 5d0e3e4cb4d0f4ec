"""Inputs with boxes and points on them, as drawings of a page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lighten.delivery.measure.marked import described

WIDE = 160.0
"""Of a picture, in user units, which are pixels of the page."""
_LETTER = 9.0
_NARROW = 0.56
"""Width of a letter by its height."""


def input_svg(name: str, png: str, size: Sequence[int]) -> str:
    """Return an input alone, which others on the page show again.

    Args:
        name: of the drawing, for ``marked_svg``.
        png: in base64.
        size: width and height of the input.
    """
    tall = _tall(size)
    image = f'<image id="{name}" width="{WIDE:g}" height="{tall:.2f}" href="data:image/png;base64,{escape(png)}"/>'
    return _drawn("Input", tall, image)


def marked_svg(name: str, size: Sequence[int], marks: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """Return an input with boxes and points on it; a title on each says what it is.

    Args:
        name: of the input's drawing on the same page.
        size: width and height of the input.
        marks: in shares of it, as ``Task.marks`` has them; the first lies on top.
        colours: of the labels.
    """
    tall = _tall(size)
    parts = [f'<use href="#{name}"/>', *(_mark(mark, tall, colours) for mark in reversed(marks))]
    told = ", ".join(described(mark) for mark in marks) or "nothing"
    return _drawn(told, tall, *parts)


def _mark(mark: Mapping[str, Any], tall: float, colours: Mapping[str, str]) -> str:
    colour, text = colours.get(str(mark["label"]), "#ffffff"), described(mark)
    if "box" in mark:
        left, top, right, bottom = (float(value) * of for value, of in zip(mark["box"], (WIDE, tall) * 2, strict=True))
        shape = f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"/>'
    else:
        left, top = (float(value) * of for value, of in zip(mark["point"], (WIDE, tall), strict=True))
        shape = f'<circle cx="{left:.2f}" cy="{top:.2f}" r="3"/>'
        left += 5
    x = max(1.0, min(left + 1, WIDE - _NARROW * _LETTER * len(text)))
    y = top - 2.5 if top > _LETTER + 3 else top + _LETTER
    return (
        f'<g stroke="{colour}"><title>{escape(text)}</title>{shape}</g>'
        f'<text x="{x:.2f}" y="{y:.2f}">{escape(text)}</text>'
    )


def _drawn(told: str, tall: float, *parts: str) -> str:
    return (
        f'<svg class="marked" viewBox="0 0 {WIDE:g} {tall:.2f}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _tall(size: Sequence[int]) -> float:
    width, height = (int(side) for side in size)
    return WIDE * height / max(1, width)
