"""What a report shows of the answers: parts, predicted against true, pictures side by side."""

from pathlib import Path
from typing import Any

import numpy as np

from lighten.delivery.folders.run import read_json
from lighten.delivery.measure.exhibits import PICTURES, POINTS, colours_of
from lighten.delivery.measure.marked import mark_colours
from lighten.delivery.measure.scores import Scores, reference_of
from lighten.delivery.report import plots
from lighten.delivery.report.figures import NAMES, roles
from lighten.delivery.report.marked import input_svg, marked_svg
from lighten.delivery.report.wording import format_of

Shown = tuple[str, str | None, str, bool]
"""Heading, drawing, caption, and whether it scrolls."""


def parts_plot(scores: Scores | None) -> list[Shown]:
    """Return each part's figure of the reference and of the compressed model, such as class by class."""
    if not scores or not scores.get("parts"):
        return []
    parts, (who, _) = scores["parts"], reference_of(scores)
    kind, lower = parts["kind"], parts["lower_is_better"]
    pairs = zip(parts["names"], parts["values"][who], parts["values"]["compressed"], strict=True)
    changes = [((old - new if lower else new - old), name) for name, old, new in pairs if None not in (old, new)]
    if not changes:
        return []
    change, name = min(changes)
    told = {"metrics": {parts["metric"]: parts}, "alike": {}, "unit": scores["task"]["unit"]}
    loss = format_of(told, parts["metric"], 1)(-change)
    of_its = " of its samples" if parts["metric"] == "recall" else f" of {parts['label']}" if not lower else ""
    what = f"{name} loses most, {loss}{of_its}." if change < 0 else f"No {kind} loses."
    caption = f"Filled: compressed. Open: {NAMES[who].lower()}. {what}"
    drawn = plots.parts_plot(parts, who, scores["task"])
    many = 20 < len(changes) <= plots.MAX_PARTS
    return [("Class by class" if kind == "class" else f"{kind.capitalize()} by {kind}", drawn, caption, many)]


def points_plots(run: Path, scores: Scores | None) -> list[Shown]:
    """Return predicted against true values and the residuals, where answers are numbers."""
    if not scores or not (run / POINTS).exists():
        return []
    points, (who, _) = read_json(run / POINTS, made_by=f"lighten measure {run}"), reference_of(scores)
    target = f" of {points['target']}" if points["target"] else ""
    return [
        (
            "Predicted against true",
            plots.points_plot(points, who, scores["task"]),
            f"{len(points['true'])} test samples{target}: the compressed model’s answers over the "
            f"{NAMES[who].lower()}’s. On the dotted line they are right.",
            False,
        ),
        (
            "Residuals",
            plots.residuals_plot(points, scores["task"]),
            "How far the compressed model’s answers are off, over the true values; above the line they are too high.",
            False,
        ),
    ]


def pictures(run: Path, scores: Scores | None) -> dict[str, Any] | None:
    """Return pictures side by side: input, truth and what each model answers, of the worst and of middling samples.

    Cells of a row are drawings (``svg``) where boxes and points are marked on the input, else ``png`` in base64.
    """
    if not scores or not (run / PICTURES).exists():
        return None
    found = read_json(run / PICTURES, made_by=f"lighten measure {run}")
    columns = [("input", "Input"), ("truth", "Truth"), *((role, NAMES[role]) for role in roles(scores))]
    names, samples = found["classes"], found["samples"]
    if any("size" in row for row in samples):
        palette: Any = list(mark_colours(names).values())
    else:
        palette = colours_of(np.arange(len(names))[None], len(names))[0].tolist()
    legend = [(name, "#{:02x}{:02x}{:02x}".format(*rgb)) for name, rgb in zip(names, palette, strict=True)]
    rows = [
        {"sample": row["sample"], "rank": row["rank"],
         "cells": _cells(f"input-{number}", row, [key for key, _ in columns], dict(legend))}
        for number, row in enumerate(samples)
    ]  # fmt: skip
    return {"columns": [label for _, label in columns], "legend": legend, "rows": rows}


def _cells(name: str, row: dict[str, Any], keys: list[str], colours: dict[str, str]) -> list[dict[str, str]]:
    if "size" not in row:
        return [{"png": row[key]} for key in keys]
    return [
        {"svg": input_svg(name, row[key], row["size"]) if key == "input" else
         marked_svg(name, row["size"], row[key], colours)}
        for key in keys
    ]  # fmt: skip
