"""Quantization of a run in words and rows, for the report, the card and the terminal alike.

Everything here is optional: a run in floating point, or an older one, tells nothing and gets nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import read_json
from lighten.delivery.measure.scores import Scores
from lighten.delivery.report.figures import Figure, amount, figure, milliseconds, percent, times
from lighten.delivery.report.wording import label_of
from lighten.utils.targets import TARGETS

Parts = tuple[Figure | str, ...]
"""A line of text in which each number still knows its place in ``scores.json``."""

HALVES = ("float16", "bfloat16")

RANGE_WORDS = {
    "moving_average": "a moving average of the extremes",
    "min_max": "the extremes that were seen",
    "percentile": "quantiles of a histogram",
    "mse": "least squared error",
    "entropy": "least divergence",
    "lsq": "learned step sizes",
}
"""What ``ranges`` names, in words."""

FLOAT_NOTE = "floating point"
"""How the note of a layer begins that is not quantized."""

NAMED = 8
"""The most layers that a sentence names."""


@dataclass(frozen=True)
class Layer:
    """A row of the table of layers; ``note`` is what it computes besides, or why it is not quantized."""

    name: str
    kind: str
    bits: str
    input: str
    output: str
    note: str
    quantized: bool


@dataclass(frozen=True)
class MeasuredFile:
    """A file that was measured in its runtime."""

    name: str
    file: str
    runtime: str


@dataclass(frozen=True)
class Runtimes:
    """The same network in several runtimes.

    Attributes:
        targets: the columns.
        rows: a label, and a cell for each target.
        missing: targets that could not be measured, and the line that says what to do.
    """

    targets: list[MeasuredFile]
    rows: list[tuple[str, list[Parts]]]
    missing: list[tuple[str, str]]


def read_compression(run: Path) -> dict[str, Any]:
    """Return a run's ``student/compression.json``; empty where there is none.

    Raises:
        UserError: if it is broken.
    """
    path = run / "student" / "compression.json"
    return read_json(path, made_by=f"lighten shrink {run}") if path.exists() else {}


def plain(parts: Parts) -> str:
    """Return a line as plain text."""
    return "".join(part.text if isinstance(part, Figure) else part for part in parts)


def warnings_of(scores: Scores | None) -> list[str]:
    """Return what is wrong with the int8 file, one line each: larger or slower than it was in floating point."""
    return [" ".join(str(line).split()) for line in _entry(scores, "gate").get("warnings") or []]


def layers_of(compression: Mapping[str, Any]) -> list[Layer]:
    """Return the layers of ``compression.json``, in its order."""
    half = _mode(compression) in HALVES
    return [_layer(row, half) for row in compression.get("layers") or []]


def method(compression: Mapping[str, Any], *, quote: str = "") -> str | None:
    """Return how the network was quantized, in a sentence or two; ``None`` where it was not.

    Args:
        compression: what ``compression.json`` holds.
        quote: stands around names of layers, a backtick in Markdown.
    """
    settings = compression.get("quantization")
    if settings is None:
        return None
    mode, bits = _mode(compression), settings.get("weight_bits") or 8
    begun, weights = "Quantized after training", f"weights in {bits} bits, a scale a channel"
    whole = f"{weights}; activations in 8 bits, {_ranges(settings)}"
    if settings.get("activations") == "float32":
        whole = f"{weights}; it computes in float32, as {settings.get('why') or 'was asked'}"
    caption = {
        "train": f"Quantized while training, through fake-quantized int8: {whole}.",
        "static": f"{begun}: {whole}.",
        "dynamic": f"{begun}: {weights}; activations in 8 bits, their range taken anew in each call.",
        **{half: f"{begun}: weights stored in {half}, computed with in float32." for half in HALVES},
    }.get(mode, f"Quantized: {mode}.")
    left = settings.get("exclude") or []
    return f"{caption} Left out by request: {_some(left, quote)}." if left else caption


def count(compression: Mapping[str, Any]) -> str | None:
    """Return ``"21 of 23 layers in int8"``; ``None`` where no layers are listed."""
    layers = layers_of(compression)
    if not layers:
        return None
    mode = _mode(compression)
    many = f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"
    return f"{sum(layer.quantized for layer in layers)} of {many} in {mode if mode in HALVES else 'int8'}"


def left_in_float(compression: Mapping[str, Any], *, quote: str = "") -> str | None:
    """Return the names of the layers that are not quantized, as ``method`` does; ``None`` where there are none."""
    names = [layer.name for layer in layers_of(compression) if not layer.quantized]
    return _some(names, quote) if names else None


def int8_vs_float(scores: Scores | None) -> Parts | None:
    """Return the int8 file against the same network in float32 in the same runtime, in a sentence."""
    found = _entry(scores, "gate")
    said = [
        _said(found, "size_ratio", ("smaller", "larger"), "bytes", lambda value: amount(value, "B")),
        *(
            _said(
                found, f"speedup_{batch}", ("faster", "slower"), f"latency_ms.{batch}.median", milliseconds,
                f" at {batch.replace('_', ' ')}",
            )
            for batch in ("batch_1", "batch_32")
        ),
    ]  # fmt: skip
    caption = [parts for parts in said if parts]
    if not caption:
        return None
    where = f" in {found['runtime']}" if found.get("runtime") else ""
    line: list[Figure | str] = [f"Against the same network in float32{where}: "]
    for index, parts in enumerate(caption):
        line += [", " if index else "", *parts]
    return (*line, ".")


def runtimes(scores: Scores | None) -> Runtimes | None:
    """Return the files of each target side by side; ``None`` where none was asked for."""
    found = _entry(scores, "targets")
    known = [*(key for key in TARGETS if key in found), *(key for key in found if key not in TARGETS)]
    there = [key for key in known if "missing" not in found[key]]
    missing = [(_title(key), str(found[key]["missing"])) for key in known if key not in there]
    if scores is None or not known:
        return None
    lines = [
        (label, [_cell(scores, found[key], f"targets.{key}", places) for key in there])
        for label, places in [*_metrics(scores["task"]), *_LINES]
    ]
    return Runtimes(
        [MeasuredFile(_title(k), str(found[k].get("file", "")), str(found[k].get("runtime", ""))) for k in there],
        [(label, cells) for label, cells in lines if any(cell != ("–",) for cell in cells)],
        missing,
    )


def _title(target: str) -> str:
    return TARGETS[target].title if target in TARGETS else target


def _metrics(task: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the rows on quality: the leading metric, and how alike a file answers to ONNX."""
    alike = next(iter(task["alike"]), None)
    label = "Same answers as ONNX" if alike == "agreement" else f"{label_of(task, str(alike))}, to ONNX"
    likeness = [(label, (alike if alike == "agreement" else f"likeness.{alike}",))] if alike else []
    return [(label_of(task, task["metric"]), (task["metric"],)), *likeness]


_LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Differ from PyTorch", ("flips", "flips_of")),
    ("Size", ("bytes",)),
    ("Latency, batch 1", ("latency_ms.batch_1.median",)),
    ("90th percentile", ("latency_ms.batch_1.p90",)),
    ("Latency, batch 32", ("latency_ms.batch_32.median",)),
    ("90th percentile", ("latency_ms.batch_32.p90",)),
)


def _cell(scores: Scores, target: Mapping[str, Any], place: str, keys: Sequence[str]) -> Parts:
    if any(_at(target, key) is None for key in keys):
        return ("–",)
    parts: list[Figure | str] = []
    for key in keys:
        found = figure(scores, f"{place}.{key}")
        parts += [" of "] if parts else []
        parts.append(replace(found, text=percent(found.value)) if key == "agreement" else found)
    return tuple(parts)


ALIKE = {("smaller", "larger"): "as large", ("faster", "slower"): "as fast"}
"""What is said of a ratio that rounds to one."""


def _said(
    found: Mapping[str, Any], ratio: str, words: tuple[str, str], what: str, show: Any, when: str = ""
) -> Parts | None:
    """Return ``"3.6× smaller (1.09 MB → 303 kB)"`` or ``"as large (…)"`` in parts; ``None`` if the ratio is unknown."""
    value = found.get(ratio)
    if value is None:
        return None
    less = 0 < value < 1
    shown = times(1 / value if less else value)
    parts: list[Figure | str] = [Figure(f"gate.{ratio}", value, shown), f" {words[less]}{when}"]
    if shown == times(1.0):
        parts = [f"{ALIKE[words]}{when}"]
    before, after = (_at(found, f"{side}_{what}") for side in ("float", "int8"))
    if before is not None and after is not None:
        ends = [Figure(f"gate.{s}_{what}", v, show(v)) for s, v in (("float", before), ("int8", after))]
        parts += [" (", ends[0], " → ", ends[1], ")"]
    return tuple(parts)


def _layer(row: Mapping[str, Any], half: bool) -> Layer:
    note = row.get("note") or ""
    quantized = not note.startswith(FLOAT_NOTE)
    bits = str(row["weight_bits"]) if row.get("weight_bits") else "16" if half else "8"
    return Layer(
        row["name"],
        row.get("kind") or "",
        bits if quantized else "float",
        _span(row.get("input")),
        _span(row.get("output")),
        note if quantized else note.removeprefix(FLOAT_NOTE).lstrip(": "),
        quantized,
    )


def _mode(compression: Mapping[str, Any]) -> str:
    return (compression.get("quantization") or {}).get("mode") or "train"


def _ranges(settings: Mapping[str, Any]) -> str:
    name = settings.get("ranges")
    by = (
        f"ranges by {RANGE_WORDS[name]} ({name})"
        if name in RANGE_WORDS
        else f"ranges by {name}"
        if name
        else "ranges fixed"
    )
    data = settings.get("calibration")
    return f"{by}, calibrated on {data['samples']:,} samples of the {data['split']} split" if data else by


def _some(names: Sequence[str], quote: str) -> str:
    more = len(names) - NAMED
    return ", ".join(f"{quote}{name}{quote}" for name in names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _span(bounds: Sequence[float | None] | None) -> str:
    if not bounds or None in bounds:
        return "–"
    return " to ".join(re.sub(r"e\+?(-?)0?", r"e\1", f"{bound:.3g}").replace("-", "−") for bound in bounds)


def _entry(scores: Scores | None, key: str) -> dict[str, Any]:
    everything: Mapping[str, Any] = scores or {}
    return everything.get(key) or {}


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
