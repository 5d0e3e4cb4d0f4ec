"""SVG drawings: a frame with axes, lines and labels, coloured by the page's style sheet.

Colours are CSS classes, so that one drawing serves light, dark and print. Sizes are chosen so that the text
stays readable when a 390 px phone scales the drawing down.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

Point = tuple[float, float]

WIDTH = 480.0


@dataclass(frozen=True)
class Frame:
    """The plotting area and its scales, in data units.

    Attributes:
        x: lowest and highest x.
        y: lowest and highest y.
        height: of the whole drawing in user units.
        log_x: whether x is logarithmic.
        margin: left, top, right and bottom space around the plotting area.
        width: of the whole drawing in user units.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    height: float = 280.0
    log_x: bool = False
    margin: tuple[float, float, float, float] = (50.0, 26.0, 16.0, 36.0)
    width: float = WIDTH
    parts: list[str] = field(default_factory=list)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plotting area."""
        left, top, right, bottom = self.margin
        return left, top, self.width - right, self.height - bottom

    def at(self, x: float, y: float) -> Point:
        """Return where a data point lies on the drawing."""
        left, top, right, bottom = self.box
        along = math.log if self.log_x else float
        low, high = along(self.x[0]), along(self.x[1])
        across = (along(x) - low) / ((high - low) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return left + across * (right - left), bottom - up * (bottom - top)

    def add(self, *parts: str) -> None:
        """Draw on top of what is there."""
        self.parts.extend(parts)

    def y_axis(self, show: Callable[[float], str]) -> None:
        """Draw horizontal grid lines with their values."""
        left, _, right, _ = self.box
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            self.add(line((left, y), (right, y), "grid"), text(left - 8, y + 4, show(value), "tick end"))

    def x_axis(self, values: Sequence[float], show: Callable[[float], str], label: str) -> None:
        """Draw the base line, its values, and what they are."""
        left, _, right, bottom = self.box
        self.add(line((left, bottom), (right, bottom), "axis"))
        for value in values:
            x, _ = self.at(value, self.y[0])
            self.add(text(x, bottom + 16, show(value), "tick mid"))
        self.add(text((left + right) / 2, bottom + 32, label, "tick mid"))

    def path(self, points: Sequence[Point], css: str) -> None:
        """Draw a line through data points."""
        if points:
            self.add(f'<path class="{css}" d="M{_coordinates([self.at(*p) for p in points])}"/>')

    def area(self, points: Sequence[Point], css: str) -> None:
        """Fill between the base line and data points."""
        if points:
            base = self.y[0]
            closed = [(points[0][0], base), *points, (points[-1][0], base)]
            self.add(f'<path class="{css}" d="M{_coordinates([self.at(*p) for p in closed])}Z"/>')

    def drawing(self, title: str, description: str) -> str:
        """Return the SVG element; ``title`` and ``description`` are what a screen reader says."""
        return svg(self.parts, self.height, title, description, width=self.width)


def svg(parts: Sequence[str], height: float, title: str, description: str, *, width: float = WIDTH) -> str:
    """Return an SVG element that scales with the page and speaks to screen readers."""
    caption = escape(f"{title}. {description}")
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{caption}">'
    return f"{head}{''.join(parts)}</svg>"


def line(start: Point, end: Point, css: str) -> str:
    """Return a straight line."""
    return f'<path class="{css}" d="M{_coordinates([start, end])}"/>'


def rectangle(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    """Return a rectangle with rounded corners; ``title`` shows when pointed at."""
    size = f'width="{max(width, 0):.1f}" height="{height:.1f}" rx="2"'
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" {size}>{_title(title)}</rect>'


def circle(centre: Point, radius: float, css: str, title: str = "") -> str:
    """Return a circle; ``title`` shows when pointed at."""
    x, y = centre
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_title(title)}</circle>'


def text(x: float, y: float, content: str, css: str = "") -> str:
    """Return a text; classes ``mid`` and ``end`` anchor it at its middle or end."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def shorten(name: str, length: int) -> str:
    """Return the end of a name that is longer than ``length``: of ``layer1.0.conv1`` the last parts tell most."""
    return name if len(name) <= length else "…" + name[1 - length :].lstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round values between ``low`` and ``high``."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def powers_of_ten(values: Sequence[float], *, least: int, most: int) -> tuple[int, int]:
    """Return the powers of ten around the values, ``least`` to ``most`` of them: of more, the lowest are left out."""
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    high = math.ceil(max(logs))
    return max(min(math.floor(min(logs)), high - least), high - most), high


def spread(positions: Sequence[float], gap: float, *, highest: float) -> list[float]:
    """Return the positions moved until all are at least ``gap`` apart and none is above ``highest``.

    Their order is kept.
    """
    moved = list(positions)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for before, now in pairwise(order):
        moved[now] = max(moved[now], moved[before] + gap)
    for rank, index in enumerate(reversed(order)):
        moved[index] = min(moved[index], highest - rank * gap)
    return moved


def downsample(points: Sequence[Point], limit: int) -> list[Point]:
    """Return at most ``limit`` points: the lowest and the highest of each stretch, so no spike is lost."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(extremes)
    return kept


def means(points: Sequence[Point], limit: int) -> list[Point]:
    """Return the mean point of each of ``limit`` stretches, or the points where there are fewer."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]


def _coordinates(points: Sequence[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _title(content: str) -> str:
    return f"<title>{escape(content)}</title>" if content else ""
