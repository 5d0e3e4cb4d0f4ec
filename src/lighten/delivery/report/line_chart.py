"""Line charts along the fit: curves over tinted phases, with names and last values on the right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lighten.delivery.report.svg import Frame, Point, circle, downsample, means, rectangle, shorten, spread, text

TREND_POINTS = 40
"""A noisy line with more points than this is drawn pale, with the mean of as many stretches over it."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, its colour (a CSS class) and its points (share of the fit, value)."""

    name: str
    css: str
    points: list[Point]


@dataclass(frozen=True)
class Phase:
    """A part of the fit in which something is on: name, colour, and begin and end as shares of the fit."""

    name: str
    css: str
    begin: float
    end: float


@dataclass(frozen=True)
class Style:
    """Sizes of a chart.

    Attributes:
        points: the most that a line is drawn with.
        radius: of the dot at its end.
        beside: from the dot to the name.
        below: from the name to the value.
        gap: the least between two names.
        floor: from the lowest name to the base line.
        letters: of a name.
    """

    points: int
    radius: float
    beside: float
    below: float
    gap: float
    floor: float
    letters: int


LARGE = Style(points=240, radius=3.5, beside=9, below=14, gap=30, floor=18, letters=13)
SMALL = Style(points=160, radius=3, beside=8, below=13, gap=29, floor=12, letters=13)


def draw_curves(
    frame: Frame, curves: Sequence[Curve], show: Callable[[float], str], style: Style, title: str = ""
) -> str:
    """Draw curves as far as they lie in the frame; return where they end, in words.

    Args:
        frame: the plotting area.
        curves: with at least one point each.
        show: writes a value.
        style: sizes.
        title: what a curve without a name is called when pointed at.
    """
    for curve in curves:
        noisy = len(curve.points) > 2 * TREND_POINTS
        if noisy:
            frame.path(downsample(inside(frame, curve.points), style.points), f"pale {curve.css}")
        frame.path(inside(frame, means(curve.points, TREND_POINTS) if noisy else curve.points), f"curve {curve.css}")
    for curve, near in zip(curves, _heights(frame, curves, style), strict=True):
        caption = f"{curve.name or title}: {show(curve.points[-1][1])} at the end"
        frame.add(circle(end_of(frame, curve), style.radius, f"dot {curve.css}", caption))
        _name(frame, curve, near, show, style)
    return "; ".join(f"{curve.name or 'it'} ends at {show(curve.points[-1][1])}" for curve in curves)


def name_curves(frame: Frame, curves: Sequence[Curve], show: Callable[[float], str], style: Style) -> None:
    """Write names and last values of curves beside their ends."""
    for curve, near in zip(curves, _heights(frame, curves, style), strict=True):
        _name(frame, curve, near, show, style)


def draw_bands(frame: Frame, bands: Sequence[Phase], *, named: bool = True) -> None:
    """Tint the phases of a fit, with their names above where there is room."""
    _, top, _, bottom = frame.box
    for band in bands:
        start, end = frame.at(band.begin, frame.y[0])[0], frame.at(band.end, frame.y[0])[0]
        frame.add(rectangle(start, top, end - start, bottom - top, f"band {band.css}"))
        if named:
            frame.add(text(start + 3, top - 7, band.name, f"mark {band.css}"))


def range_of(lines: Sequence[Sequence[Point]], base: float | None = None) -> tuple[float, float]:
    """Return the range of the last nine tenths of the fit, so that the first steps do not flatten the rest.

    Args:
        lines: points (share of the fit, value).
        base: where the range begins, instead of at the lowest value.
    """
    late = [y for line in lines for x, y in line if x >= 0.1] or [y for line in lines for _, y in line]
    low, high = min(late) if base is None else base, max(late)
    pad = (high - low or abs(high) or 1.0) * 0.08
    return (low - pad if base is None else base), high + pad


def inside(frame: Frame, points: Sequence[Point]) -> list[Point]:
    """Return the points that lie in the frame."""
    low, high = frame.y
    return [point for point in points if low <= point[1] <= high]


def end_of(frame: Frame, curve: Curve) -> Point:
    """Return where a curve ends on the drawing; beyond the frame, at its edge."""
    (x, y), (low, high) = curve.points[-1], frame.y
    return frame.at(x, min(max(y, low), high))


def _heights(frame: Frame, curves: Sequence[Curve], style: Style) -> list[float]:
    ends = [end_of(frame, curve)[1] for curve in curves]
    return spread(ends, style.gap, highest=frame.box[3] - style.floor)


def _name(frame: Frame, curve: Curve, y: float, show: Callable[[float], str], style: Style) -> None:
    x = end_of(frame, curve)[0] + style.beside
    if curve.name:
        frame.add(text(x, y, shorten(curve.name, style.letters), f"label {curve.css}"))
    frame.add(text(x, y + style.below, show(curve.points[-1][1]), "tick"))
