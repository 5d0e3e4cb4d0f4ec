"""The report's large plots, drawn from scores and history."""

from collections.abc import Callable, Mapping, Sequence
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
from lighten.delivery.report.wording import CLASSES, Told, format_of, four_digits, label_of

LABELS = ("cross_entropy", "mean_squared_error", "labels", "own")
"""Losses on labels, of which most fits have one."""
MAX_PARTS, MAX_DRAWN = 60, 20
"""Of more parts than the first, so many are drawn."""
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


def quality_plot(history: HistoryRows, task: Told = CLASSES) -> str | None:
    """Return the plot of the student's leading metric against the teacher's; None where neither was logged."""
    metric = task["metric"]
    curves = [
        Curve("Teacher", "teacher", history.series(f"teacher/{metric}")),
        Curve("Student", "student", history.series(f"student/{metric}")),
    ]
    tick, label = format_of(task, metric, 0), format_of(task, metric, 1)
    return _curves(curves, phases(history), tick, label, f"{label_of(task, metric)} over the fit")


def loss_plot(history: HistoryRows) -> str | None:
    """Return the plot of the training losses over the fit; None where none was logged."""
    curves = [
        Curve("Total", "total", history.series("train/loss")),
        Curve("Soft labels", "soft", history.series("distil/soft_labels")),
        *(Curve("Hard labels", "hard", history.series(f"distil/{name}")) for name in LABELS),
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
    """Return the plot of latency against the leading metric; the area of each disc is the model's size."""
    task, metric = scores["task"], scores["task"]["metric"]
    points = {
        role: (
            figure(scores, f"models.{role}.latency_ms.batch_1.median"),
            figure(scores, f"models.{role}.{metric}"),
            figure(scores, f"models.{role}.bytes"),
        )
        for role in roles(scores)
    }
    slow = [ms.value for ms, _, _ in points.values()]
    good = [accuracy.value for _, accuracy, _ in points.values()]
    pad = max(max(good) - min(good), 0.004 * max(1.0, *map(abs, good))) * 0.6
    frame = Frame(
        (min(slow) / 2.2, max(slow) * 2.2),
        within_share((min(good) - pad, max(good) + pad), task, metric),
        log_x=True,
        margin=(56.0, 26.0, 16.0, 36.0),
    )
    frame.y_axis(format_of(task, metric, 1))
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
    return frame.drawing(f"{label_of(task, metric)} against latency, the area is the size", caption)


def within_share(span: tuple[float, float], task: Told, metric: str) -> tuple[float, float]:
    """Return a range of values, kept in [0, 1] where they are shares."""
    if task["metrics"][metric]["format"] != "percent":
        return span
    return max(0.0, span[0]), min(1.0, span[1])


def parts_plot(parts: Mapping[str, Any], who: str, task: Told = CLASSES) -> str | None:
    """Return each part's figure of the reference and of the compressed model; None without parts.

    Args:
        parts: what ``scores.json`` says of them. Of very many those are drawn that change most.
        who: the role of the reference.
        task: whose unit they are in.
    """
    found = zip(parts["names"], parts["values"][who], parts["values"]["compressed"], strict=True)
    rows = [(n, r, c) for n, r, c in found if r is not None and c is not None]
    if not rows:
        return None
    if len(rows) > MAX_PARTS:
        sign = -1 if parts["lower_is_better"] else 1
        rows = sorted(rows, key=lambda row: sign * (row[2] - row[1]))[:MAX_DRAWN]
    told = {"metrics": {parts["metric"]: parts}, "alike": {}, "unit": task["unit"]}
    show, share = format_of(told, parts["metric"], 1), parts["format"] == "percent"
    values = [value for _, *pair in rows for value in pair]
    pad = 0.03 if share else 0.05 * (max(values) - min(values) or 1.0)
    low, high = (max(0.0, min(values) - pad), 1.0) if share else (min(values) - pad, max(values) + pad)
    row = 24.0
    frame = Frame((low, high), (0, 1), height=row * len(rows) + 54, margin=(116.0, 12.0, 22.0, 42.0))
    left, top, right, bottom = frame.box
    for value in ticks(low, high, 4):
        x, _ = frame.at(value, 0)
        tick = percent(value, 0) if share else show(value)
        frame.add(line((x, top), (x, bottom), "grid"), text(x, bottom + 16, tick, "tick mid"))
    axis = "share of the class that is found" if parts["metric"] == "recall" else parts["label"]
    frame.add(text((left + right) / 2, bottom + 33, axis, "tick mid"))
    for index, (name, old, new) in enumerate(rows):
        y = top + row * (index + 0.5)
        a, b = frame.at(old, 0)[0], frame.at(new, 0)[0]
        caption = f"{name}: {NAMES['compressed'].lower()} {show(new)}, {who} {show(old)}"
        frame.add(
            text(left - 8, y + 4, shorten(name, 15), "tick end"),
            line((a, y), (b, y), "span"),
            circle((a, y), 5, f"ring {who}", caption),
            circle((b, y), 5, "dot compressed", caption),
        )
    caption = ", ".join(f"{name} {show(new)} ({who} {show(old)})" for name, old, new in rows)
    title = "Share found of each class" if parts["metric"] == "recall" else f"{parts['label']} of each {parts['kind']}"
    return frame.drawing(title, caption)


def points_plot(points: Mapping[str, Any], who: str, task: Told) -> str | None:
    """Return predicted against true values of the reference and the compressed model, equal values on the diagonal.

    Args:
        points: what ``points.json`` holds.
        who: the role of the reference.
        task: whose unit they are in.
    """
    true, models = points["true"], points["models"]
    if not true:
        return None
    values = [*true, *models["compressed"], *models[who]]
    low, high = min(values), max(values)
    pad = 0.04 * (high - low or 1.0)
    frame = Frame((low - pad, high + pad), (low - pad, high + pad), height=420.0, margin=(70.0, 16.0, 16.0, 36.0))
    unit = f", {task['unit']}" if task.get("unit") else ""
    frame.y_axis(four_digits)
    frame.x_axis(ticks(low, high, 4), four_digits, f"true value{unit}")
    frame.path([(low, low), (high, high)], "guide")
    for role, css in ((who, f"dot faint {who}"), ("compressed", "dot faint compressed")):
        for at, said in zip(true, models[role], strict=True):
            frame.add(circle(frame.at(at, said), 2.2, css))
    return frame.drawing("Predicted against true", f"{len(true)} samples of the test split, compressed over {who}")


def residuals_plot(points: Mapping[str, Any], task: Told) -> str | None:
    """Return how far the compressed model's answers are off, over the true values."""
    true = points["true"]
    if not true:
        return None
    off = [said - at for at, said in zip(true, points["models"]["compressed"], strict=True)]
    low, high = min(true), max(true)
    far = max(map(abs, off)) or 1.0
    pad = 0.04 * (high - low or 1.0)
    frame = Frame((low - pad, high + pad), (-1.08 * far, 1.08 * far), height=420.0, margin=(70.0, 16.0, 16.0, 36.0))
    unit = f", {task['unit']}" if task.get("unit") else ""
    frame.y_axis(four_digits)
    frame.x_axis(ticks(low, high, 4), four_digits, f"true value{unit}")
    frame.path([(low, 0.0), (high, 0.0)], "guide")
    for at, error in zip(true, off, strict=True):
        frame.add(circle(frame.at(at, error), 2.2, "dot faint compressed"))
    return frame.drawing("Residuals of the compressed model", f"{len(off)} samples, at most {four_digits(far)} off")


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
