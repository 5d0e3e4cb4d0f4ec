"""Types of drawings that stand side by side on a page."""

from dataclasses import dataclass

COLUMNS = 3
"""Broad drawings that stand side by side where there is room."""

SMALLEST = 160.0, 92.0
"""Width and height of one small drawing in user units; that wide it is on a phone, where two stand side by side."""


@dataclass(frozen=True)
class Drawing:
    """One of several drawings that are read alike: whose it is, the drawing, and lines below it."""

    name: str
    svg: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Drawings:
    """A figure of several drawings, as wide as the page; ``broad`` ones stand at most three in a row.

    ``legend`` holds colours and what they mean.
    """

    heading: str
    drawings: list[Drawing]
    caption: str
    broad: bool = False
    legend: tuple[tuple[str, str], ...] = ()
