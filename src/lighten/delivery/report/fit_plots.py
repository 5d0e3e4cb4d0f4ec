"""The report's small plots along the fit: each panel of the W&B workspace that is drawn over steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from lighten.delivery.folders.run import HistoryRows
from lighten.delivery.report.drawings import Drawing
from lighten.delivery.report.figures import percent
from lighten.delivery.report.line_chart import (
    SMALL,
    Curve,
    Phase,
    draw_bands,
    draw_curves,
    end_of,
    inside,
    name_curves,
    range_of,
)
from lighten.delivery.report.panels import Panel, sections_of
from lighten.delivery.report.plots import phases
from lighten.delivery.report.svg import Frame, Point, circle, downsample, line, ticks
from lighten.delivery.report.wording import CLASSES, Told, label_of

ABOVE = ("Training loss", "Int8: on, ranges frozen")
"""Panels that the report draws larger, beside the leading metric's."""

KEPT = "prune/kept/"
WIDTH = "prune/width"
ROUNDING = 1e-4
"""By how much a width may fall without a cut: some loggers round to 32 bits."""
SPEED = "Optimizer steps a second"

FEW_POINTS = 40
"""The most points of each of many lines."""

NAMED, MAX_NAMED = 4, 400
"""A family of more lines than the first has its highest and lowest named alone; of more than the second some are left
out."""

FLATTEST = 0.02
"""The least range of values over the largest of them: what moves less is drawn flat."""

SIZE, MARGIN = (340.0, 190.0), (52.0, 12.0, 108.0, 34.0)

COLOURS = ("compressed", "quantize", "prune", "student")
WORDS = {"amount": "asked", "sparsity": "channels", "macs": "MACs", "kl": "KL", "lr": "rate", "ece": "error"}
SHARES = (
    "accuracy", "macro_f1", "mean_iou", "worst_class", "ece", "retention", "agreement", "relative_error", "amount",
    "sparsity", "macs",
)  # fmt: skip

Series = Mapping[str, list[Point]]


def fit_drawings(history: HistoryRows, task: Told = CLASSES) -> list[tuple[str, list[Drawing]]]:
    """Return the drawings of each of ``panels.sections_of(task)`` that the history has something of."""
    above = (label_of(task, task["metric"]), *ABOVE)
    series, bands = history.every_series, phases(history)
    last = max((row["progress"] for row in history.rows), default=1.0)
    drawn = []
    for section, panels in sections_of(task).items():
        found = [_drawn(panel, series, bands, last) for panel in panels if panel.title not in above]
        if section == "System":
            found.append(_speed(history, bands))
        if any(found):
            drawn.append((section, [drawing for drawing in found if drawing]))
    return drawn


def _drawn(panel: Panel, series: Series, bands: Sequence[Phase], last: float) -> Drawing | None:
    if panel.kind in ("lines", "system"):
        names = [name for name in panel.metrics if name in series]
        own = len(panel.metrics) == 1
    elif panel.kind == "family":
        names, own = sorted(name for name in series if name.startswith(panel.metrics[0])), False
    else:
        return None
    if not names:
        return None
    show = _format(names, panel.metrics[0])
    if panel.metrics[0] == KEPT:  # logged only when it changes
        series = {name: [*series[name], (last, series[name][-1][1])] for name in names}
    if len(names) > NAMED:
        return _many(panel, names, series, show)
    lines = [
        Curve("" if own else _word(name, panel), _colour(name, number), series[name])
        for number, name in enumerate(names)
    ]
    cuts = [at for (_, before), (at, now) in pairwise(series.get(WIDTH, ())) if now < before - ROUNDING]
    marked = cuts if names[0].startswith(("system/s", WIDTH)) else ()
    note = (f"Dashed: {len(cuts)} cuts, at which channels leave the network.",) if marked else ()
    return replace(_few(panel.title, lines, bands, show, marked), notes=note)


def _few(
    title: str,
    curves: Sequence[Curve],
    bands: Sequence[Phase],
    show: Callable[[float], str],
    cuts: Sequence[float] = (),
) -> Drawing:
    frame = _frame(curves, bands, show)
    for at in cuts:
        frame.add(line(frame.at(at, frame.y[0]), frame.at(at, frame.y[1]), "cut"))
    return Drawing(title, frame.drawing(title, draw_curves(frame, curves, show, SMALL, title)), ())


def _many(panel: Panel, names: Sequence[str], series: Series, show: Callable[[float], str]) -> Drawing:
    ranked = sorted(names, key=lambda name: (-series[name][-1][1], name))
    half = MAX_NAMED // 2
    ranked = ranked if len(ranked) <= MAX_NAMED else [*ranked[:half], *ranked[-half:]]
    lines = [Curve(name.removeprefix(panel.metrics[0]), "student", series[name]) for name in ranked]
    frame = _frame(lines, (), show)
    for curve in lines:
        frame.path(inside(frame, downsample(curve.points, FEW_POINTS)), f"pale {curve.css}")
        caption = f"{curve.name}: {show(curve.points[-1][1])} at the end"
        frame.add(circle(end_of(frame, curve), 2, f"dot {curve.css}", caption))
    ends = (lines[0], lines[-1])
    name_curves(frame, ends, show, replace(SMALL, letters=12))
    left = f", {len(lines)} drawn" if len(lines) < len(names) else ""
    caption = " and ".join(f"{line.name} with {show(line.points[-1][1])}" for line in ends)
    note = f"{len(names)} of them{left}; the highest and the lowest at the end are named."
    return Drawing(panel.title, frame.drawing(panel.title, f"{len(names)} lines, from {caption}"), (note,))


def _speed(history: HistoryRows, bands: Sequence[Phase]) -> Drawing | None:
    points: list[Point] = []
    before: tuple[float, float] | None = None
    for row in history.rows:
        step, seconds = row["step"], row.get("time")
        if not isinstance(seconds, int | float):
            continue
        if before and step > before[0] and seconds > before[1]:
            points.append((float(row["progress"]), (step - before[0]) / (seconds - before[1])))
        if not before or step > before[0]:
            before = step, seconds
    return _few(SPEED, [Curve("", "student", points)], bands, "{:.3g}".format) if points else None


def _frame(lines: Sequence[Curve], bands: Sequence[Phase], show: Callable[[float], str]) -> Frame:
    low, high = range_of([line.points for line in lines])
    flat = FLATTEST * max(abs(low), abs(high)) - (high - low)
    low, high = (low - flat / 2, high + flat / 2) if flat > 0 else (low, high)
    if all(value >= 0 for line in lines for _, value in line.points):
        low = max(low, 0.0)
    frame = Frame((0, 1), (low, high), width=SIZE[0], height=SIZE[1], margin=MARGIN)
    draw_bands(frame, bands, named=False)
    frame.y_axis(_tick(show, high - low))
    frame.x_axis(ticks(0, 1, 2), lambda v: percent(v, 0), "of the fit")
    return frame


def _tick(show: Callable[[float], str], span: float) -> Callable[[float], str]:
    """Return how values are written along an axis: with the digits that tell its lines apart, and no more."""
    sign = "\N{NO-BREAK SPACE}%" if show(1.0).endswith("%") else ""
    scale = 100.0 if show(1.0).startswith("100") else 1.0
    digits = min(max(0, math.ceil(1 - math.log10(span * scale / 2))), 6) if span > 0 else 2
    return lambda value: f"{_plain(value * scale, digits)}{sign}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _colour(name: str, number: int) -> str:
    whose = name.partition("/")[0]
    return whose if whose in ("teacher", "student") else COLOURS[number % len(COLOURS)]


def _word(name: str, panel: Panel) -> str:
    """Return what a line is called: whose it is where all are of one kind, else what it is of."""
    whose, _, what = name.partition("/")
    if panel.kind == "family":
        what = name.removeprefix(panel.metrics[0])
    elif whose in ("teacher", "student"):
        return whose.capitalize()
    return WORDS.get(what, what.replace("_", " "))


def _format(names: Sequence[str], first: str) -> Callable[[float], str]:
    if first.startswith(("distil/share/", KEPT)):
        return lambda value: percent(value, 0)
    if first in ("system/cpu", "system/memory_percent"):
        return "{:.0f}\N{NO-BREAK SPACE}%".format
    shares = all(name.rpartition("/")[2] in SHARES for name in names)
    return (lambda value: percent(value, 1)) if shares else "{:.3g}".format
