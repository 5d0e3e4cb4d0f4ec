"""The report's large plots, drawn from scores and history."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lighten.delivery.folders.run import HistoryRows
from lighten.delivery.measure.scores import Scores, reference_of
from lighten.delivery.report.figures import NAMES, figure, milliseconds, percent, roles
from lighten.delivery.report.line_chart import LARGE, Curve, Phase, draw_bands, draw_curves, range_of
from lighten.delivery.report.svg import (
    Frame,
    circle,
    downsample,
    line,
    rectangle,
    shorten,
    text,
    ticks,
)

LABELLED = (50.0, 26.0, 92.0, 36.0)
"""Margins that leave room for the lines' names on the right."""


def phases(history: HistoryRows) -> list[Phase]:
    """Return when the fit pruned, quantized, and held its ranges fixed, as the history shows it."""
    found = []
    sparsity = history.series("prune/sparsity")
    on = [x for x, value in sparsity if value > 0]
    if on:
        peak = max(value for _, value in sparsity)
        found.append(Phase("pruning", "prune", on[0], next(x for x, value in sparsity if value == peak)))
    for name, css, key in (
        ("int8", "quantize", "quantize/enabled"),
        ("ranges fixed", "freeze", "quantize/frozen"),
    ):
        begin = next((x for x, value in history.series(key) if value > 0), None)
        if begin is not None:
            found.append(Phase(name, css, begin, 1.0))
    return found


def accuracy_plot(history: HistoryRows) -> str | None:
    """Return the plot of student against teacher accuracy over the fit; None where neither was logged."""
    curves = [
        Curve("Teacher", "teacher", history.series("teacher/accuracy")),
        Curve("Student", "student", history.series("student/accuracy")),
    ]
    return _curves(curves, phases(history), lambda v: percent(v, 0), lambda v: percent(v, 1), "Accuracy over the fit")


def loss_plot(history: HistoryRows) -> str | None:
    """Return the plot of the training losses over the fit; None where none was logged."""
    curves = [
        Curve("Total", "total", history.series("train/loss")),
        Curve("Soft labels", "soft", history.series("distil/soft_labels")),
        Curve("Hard labels", "hard", history.series("distil/cross_entropy")),
    ]
    return _curves(curves, phases(history), "{:.2g}".format, "{:.2f}".format, "Training loss", base=0.0)


def compression_plot(history: HistoryRows) -> str | None:
    """Return the plot of sparsity with the phases of quantization below; None where neither was on."""
    sparsity, asked = history.series("prune/sparsity"), history.series("prune/amount")
    strips = [phase for phase in phases(history) if phase.css != "prune"]
    if not sparsity and not strips:
        return None
    top = max([value for _, value in [*sparsity, *asked]] + [0.1])
    frame = Frame((0, 1), (0, min(1.0, top * 1.15)), margin=(50.0, 26.0, 22.0, 36.0 + 24 * len(strips)))
    frame.y_axis(lambda v: percent(v, 0))
    frame.area(downsample(sparsity, LARGE.points), "fill prune")
    frame.path(downsample(asked, LARGE.points), "dashed prune")
    frame.path(downsample(sparsity, LARGE.points), "curve prune")
    left, _, right, bottom = frame.box
    frame.add(line((left, bottom), (right, bottom), "axis"))
    for row, phase in enumerate(strips):
        y = bottom + 8 + 24 * row
        start, end = frame.at(phase.begin, 0)[0], frame.at(phase.end, 0)[0]
        span = f"{phase.name}: {percent(phase.begin, 0)} to {percent(phase.end, 0)} of the fit"
        frame.add(rectangle(left, y, right - left, 18, "track"))
        frame.add(rectangle(start, y, end - start, 18, f"strip {phase.css}", span))
        frame.add(text(start - 8, y + 13, phase.name, "tick end"))
    for value in ticks(0, 1, 4):
        frame.add(text(frame.at(value, 0)[0], frame.height - 20, percent(value, 0), "tick mid"))
    frame.add(text((left + right) / 2, frame.height - 4, "of the fit", "tick mid"))
    if sparsity:
        x, y = frame.at(*sparsity[-1])
        frame.add(text(x, y - 8, f"{percent(sparsity[-1][1], 0)} of the channels removed", "label end prune"))
    description = f"Sparsity ends at {percent(sparsity[-1][1], 0)}. " if sparsity else ""
    caption = "; ".join(f"{phase.name} from {percent(phase.begin, 0)} of the fit on" for phase in strips)
    return frame.drawing("Pruning and quantization along the fit", description + caption)


def tradeoff_plot(scores: Scores) -> str:
    """Return the plot of latency against accuracy; the area of each disc is the model's size."""
    points = {
        role: (
            figure(scores, f"models.{role}.latency_ms.batch_1.median"),
            figure(scores, f"models.{role}.accuracy"),
            figure(scores, f"models.{role}.bytes"),
        )
        for role in roles(scores)
    }
    slow = [ms.value for ms, _, _ in points.values()]
    good = [accuracy.value for _, accuracy, _ in points.values()]
    pad = max(max(good) - min(good), 0.004) * 0.6
    frame = Frame(
        (min(slow) / 2.2, max(slow) * 2.2),
        (max(0.0, min(good) - pad), min(1.0, max(good) + pad)),
        log_x=True,
        margin=(56.0, 26.0, 16.0, 36.0),
    )
    frame.y_axis(lambda v: percent(v, 1))
    frame.x_axis(slow, milliseconds, "latency of one sample, logarithmic")
    biggest = max(size.value for _, _, size in points.values())
    reference, _ = reference_of(scores)
    at = {role: frame.at(ms.value, accuracy.value) for role, (ms, accuracy, _) in points.items()}
    frame.add(line(at[reference], at["compressed"], "guide"))
    for role, (ms, accuracy, size) in points.items():
        radius = max(4.0, 34 * (size.value / biggest) ** 0.5)
        caption = f"{NAMES[role]}: {accuracy.text}, {ms.text}, {size.text}"
        x, y = at[role]
        frame.add(circle((x, y), radius, f"disc {role}", caption), circle((x, y), 2.5, f"dot {role}"))
        above = y - radius - 20 > frame.box[1]
        where = y - radius - 19 if above else y + radius + 15
        frame.add(text(x, where, NAMES[role], f"label mid {role}"), text(x, where + 14, size.text, "tick mid"))
    caption = "; ".join(f"{NAMES[r]} {a.text} at {ms.text} and {s.text}" for r, (ms, a, s) in points.items())
    return frame.drawing("Accuracy against latency, the area is the size", caption)


def classes_plot(names: Sequence[str], reference: Sequence[Any], compressed: Sequence[Any], who: str) -> str | None:
    """Return the share of each class that the reference and the compressed model find; None without classes.

    Args:
        names: the classes.
        reference: recall of each class in [0, 1], None where the test split has none of it.
        compressed: the same of the compressed model.
        who: the role of the reference.
    """
    rows = [(n, r, c) for n, r, c in zip(names, reference, compressed, strict=True) if r is not None and c is not None]
    if not rows:
        return None
    low = max(0.0, min(min(r, c) for _, r, c in rows) - 0.03)
    row = 24.0
    frame = Frame((low, 1.0), (0, 1), height=row * len(rows) + 54, margin=(116.0, 12.0, 22.0, 42.0))
    left, top, right, bottom = frame.box
    for value in ticks(low, 1.0, 4):
        x, _ = frame.at(value, 0)
        frame.add(line((x, top), (x, bottom), "grid"), text(x, bottom + 16, percent(value, 0), "tick mid"))
    frame.add(text((left + right) / 2, bottom + 33, "share of the class that is found", "tick mid"))
    for index, (name, old, new) in enumerate(rows):
        y = top + row * (index + 0.5)
        a, b = frame.at(old, 0)[0], frame.at(new, 0)[0]
        caption = f"{name}: {NAMES['compressed'].lower()} {percent(new, 1)}, {who} {percent(old, 1)}"
        frame.add(
            text(left - 8, y + 4, shorten(name, 15), "tick end"),
            line((a, y), (b, y), "span"),
            circle((a, y), 5, f"ring {who}", caption),
            circle((b, y), 5, "dot compressed", caption),
        )
    caption = ", ".join(f"{name} {percent(new, 1)} ({who} {percent(old, 1)})" for name, old, new in rows)
    return frame.drawing("Share found of each class", caption)


def _curves(
    curves: Sequence[Curve],
    bands: Sequence[Phase],
    tick: Callable[[float], str],
    label: Callable[[float], str],
    title: str,
    *,
    base: float | None = None,
) -> str | None:
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    low, high = range_of([curve.points for curve in curves], base)
    curves = [replace(c, points=[p for p in c.points if low <= p[1] <= high]) for c in curves]
    frame = Frame((0, 1), (low, high), margin=LABELLED)
    draw_bands(frame, bands)
    frame.y_axis(tick)
    frame.x_axis(ticks(0, 1, 4), lambda v: percent(v, 0), "of the fit")
    return frame.drawing(title, draw_curves(frame, curves, label, LARGE))
