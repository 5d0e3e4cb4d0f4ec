"""The report's plot of sensitivity: what int8 costs in each layer alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import read_json
from lighten.delivery.report.drawings import COLUMNS, SMALLEST, Drawing
from lighten.delivery.report.svg import Frame, line, powers_of_ten, rectangle, shorten, text
from lighten.delivery.report.wording import CLASSES, Told, format_of, noun_of, percent
from lighten.errors import UserError

SCHEMA = 1

MAX_SHOWN = 25
"""The most layers that are drawn, one bar each."""

DECADES = 8
"""The most powers of ten that errors are drawn over."""

ROW = 36.0
"""Height of one layer: its name, and its bar below."""

INT8 = "int8"
COLOURS = {INT8: "compressed", "float32": "prune", "float16": "quantize"}
"""The colour (a CSS class) of a layer by what it computes in; of anything else that of float32."""


def read_sensitivity(run: Path) -> dict[str, Any] | None:
    """Return a run's ``sensitivity.json``; ``None`` where there is none.

    Raises:
        UserError: if it is broken, or of a schema that this version does not know.
    """
    path = run / "sensitivity.json"
    if not path.exists():
        return None
    found = read_json(path, made_by=f"lighten shrink {run}")
    if found.get("schema") != SCHEMA or not isinstance(found.get("layers"), list):
        raise UserError(f"{path}: schema {found.get('schema')!r}, expected {SCHEMA}; quantize the run again")
    return found


def ranked(sensitivity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the layers whose error is known, in the file's order: the most sensitive first."""
    return [layer for layer in sensitivity["layers"] if _is_error(layer.get("error"))]


def sensitivity_drawings(sensitivity: Mapping[str, Any], task: Told = CLASSES) -> list[Drawing]:
    """Return bars of the error of the most sensitive layers, in up to three drawings over the same axis."""
    layers = ranked(sensitivity)[:MAX_SHOWN]
    if not layers:
        return []
    decades = powers_of_ten([layer["error"] for layer in layers], least=1, most=DECADES)
    rows = math.ceil(len(layers) / COLUMNS)
    return [_drawing(layers[start : start + rows], decades, task) for start in range(0, len(layers), rows)]


def legend(sensitivity: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return colours and what they mean, of those that are drawn."""
    drawn = {_form(layer) for layer in ranked(sensitivity)[:MAX_SHOWN]}
    order = [*(form for form in COLOURS if form in drawn), *sorted(drawn - set(COLOURS))]
    return [(_colour(form), "in int8" if form == INT8 else f"left in {form}") for form in order]


def caption(sensitivity: Mapping[str, Any]) -> str:
    """Return how to read the plot, and how many layers are not drawn."""
    layers = ranked(sensitivity)
    others = layers[MAX_SHOWN:]
    kept = sum(_form(layer) != INT8 for layer in others)
    caption = (
        "Relative squared error of the logits when this layer alone is in int8, logarithmic, the most sensitive "
        "layer first, column by column."
    )
    if others:
        caption += f" Drawn are {MAX_SHOWN} of {len(layers)} layers; the error of the other {len(others)} is smaller"
        caption += f", and {kept} of them are left out of int8 too." if kept else "."
    return caption


def outcome(sensitivity: Mapping[str, Any], task: Told = CLASSES) -> str:
    """Return what was made of it: how many layers are left out of int8, and what that keeps."""
    layers, noun = sensitivity["layers"], noun_of(task, task["metric"])
    forms = [form for form in map(_form, layers) if form != INT8]
    which = ", ".join(f"{forms.count(form)} in {form}" for form in sorted(set(forms)))
    caption = f"Of {len(layers)} layers none is left out of int8"
    if forms:
        caption = (
            f"Of {len(layers)} layers {len(forms)} {'is' if len(forms) == 1 else 'are'} left out of int8 ({which})"
        )
    predicted, tolerated = sensitivity.get("predicted"), sensitivity.get("tolerated")
    if predicted is not None:
        caption += f", with which {noun} is predicted to {_change(predicted, task)}"
        caption += f"; tolerated: {_points(tolerated, task)}" if tolerated is not None else ""
    caption += "."
    baseline, samples = sensitivity.get("baseline"), sensitivity.get("samples")
    if baseline is not None and samples is not None:
        caption += f" In float32 it is {format_of(task, task['metric'])(baseline)} on the same {samples:,} samples."
    if sensitivity.get("seconds") is not None:
        caption += f" Finding out took {sensitivity['seconds']:.0f} s."
    return caption


def _drawing(layers: Sequence[Mapping[str, Any]], decades: tuple[int, int], task: Told) -> Drawing:
    noun = noun_of(task, task["metric"])
    width = 2 * SMALLEST[0]
    frame = Frame(decades, (0, 1), height=ROW * len(layers) + 26, width=width, margin=(1.0, 0.0, 62.0, 22.0))
    left, top, _, bottom = frame.box
    step = 2 if decades[1] - decades[0] > 4 else 1
    for power in range(decades[0], decades[1] + 1, step):
        x = frame.at(power, 0)[0]
        frame.add(
            line((x, top), (x, bottom), "grid"),
            text(x, bottom + 16, _number(10.0**power), "tick mid" if x > left else "tick"),
        )
    said = []
    for index, layer in enumerate(layers):
        y, form, error = top + ROW * index, _form(layer), layer["error"]
        caption = f"{layer['name']}: {_number(error)}" + ("" if form == INT8 else f", left in {form}")
        drop = layer.get("drop")
        pointed = caption if drop is None else f"{caption}; alone it makes {noun} {_change(drop, task)}"
        end = frame.at(max(math.log10(error), decades[0]), 0)[0] if error > 0 else left
        frame.add(
            text(left, y + 13, shorten(layer["name"], 44 if form == INT8 else 36), "tick"),
            rectangle(left, y + 18, max(end - left, 2), 12, f"bar {_colour(form)}", pointed),
            text(max(end, left + 2) + 6, y + 28.5, _number(error), "tick"),
        )
        if form != INT8:
            frame.add(text(width - 12, y + 13, form, f"mark end {_colour(form)}"))
        said.append(caption)
    return Drawing("", frame.drawing("Error of the logits by layer", "; ".join(said)), ())


def _form(layer: Mapping[str, Any]) -> str:
    return layer.get("kept") or INT8


def _colour(form: str) -> str:
    return COLOURS.get(form, COLOURS["float32"])


def _number(value: float) -> str:
    """Return two digits: ``0.0012``, ``3.4e-5``."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def _points(drop: float, task: Told) -> str:
    """Return a drop: of a share in points, of other metrics the share of the quality that is lost."""
    share = task["metrics"][task["metric"]]["format"] == "percent"
    return f"{100 * drop:.2f} points" if share else percent(drop)


def _change(drop: float, task: Told) -> str:
    return f"{'drop' if drop >= 0 else 'rise'} by {_points(abs(drop), task)}"


def _is_error(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
