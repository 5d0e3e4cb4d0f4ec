"""Figures as people read them, each still tied to its place in ``scores.json``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lighten.delivery.measure.scores import ROLES, Role, Scores, reference_of
from lighten.delivery.report.wording import format_of, label_of, noun_of
from lighten.delivery.report.wording import percent as percent

NAMES: dict[Role, str] = {"teacher": "Teacher", "student": "Student", "compressed": "Compressed"}
MEANING: dict[Role, str] = {
    "teacher": "float32, as trained",
    "student": "float32, before compression",
    "compressed": "what you deploy",
}


def amount(value: float, unit: str = "") -> str:
    """Return a count with three digits and a decimal prefix: ``1_284_000`` bytes are ``"1.28 MB"``."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_three_digits(value / factor)}\N{NO-BREAK SPACE}{prefix}{unit}"
    return f"{value:.0f}\N{NO-BREAK SPACE}{unit}".rstrip("\N{NO-BREAK SPACE}")


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with three digits: ``0.3124`` is ``"0.312 ms"``."""
    return f"{_three_digits(value)}\N{NO-BREAK SPACE}ms"


def times(ratio: float) -> str:
    """Return a factor: ``27.31`` is ``"27.3×"``."""
    return f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:.0f}×"


def _three_digits(value: float) -> str:
    return (
        f"{value:.0f}"
        if value >= 99.95
        else f"{value:.1f}"
        if value >= 9.995
        else f"{value:.2f}"
        if value >= 0.9995
        else f"{value:.3f}"
    )


FORMATS: dict[str, Callable[[float], str]] = {
    "parameters": amount,
    "macs": amount,
    "bytes": lambda value: amount(value, "B"),
    "median": milliseconds,
    "p90": milliseconds,
    "retention": lambda value: percent(value, 1),
    "flips": lambda value: f"{value:,.0f}",
    "flips_of": lambda value: f"{value:,.0f}",
}


@dataclass(frozen=True)
class Figure:
    """One number of ``scores.json``: its dotted place there, its value, and its text."""

    key: str
    value: float
    text: str


def figure(scores: Scores, key: str) -> Figure:
    """Return the figure at a dotted key such as ``comparison.size_ratio``."""
    value: Any = scores
    for part in key.split("."):
        value = value[part]
    return Figure(key, value, _show(scores, key)(value))


def _show(scores: Scores, key: str) -> Callable[[float], str]:
    place, _, name = key.rpartition(".")
    task = scores["task"]
    if name in FORMATS:
        return FORMATS[name]
    if name in task["metrics"] and not place.startswith("comparison"):
        return format_of(task, name)
    return format_of(task, name, 1) if name in task["alike"] else times


@dataclass(frozen=True)
class FigureRow:
    """One line of the comparison: a figure for each model that was there, and the gain over the reference."""

    label: str
    cells: tuple[Figure | None, ...]
    gain: Figure | None


LINES: tuple[tuple[str, str, str | None], ...] = (
    ("Size", "bytes", "size_ratio"),
    ("Parameters", "parameters", "parameter_ratio"),
    ("MACs", "macs", "mac_ratio"),
    ("Latency, batch 1", "latency_ms.batch_1.median", "speedup_batch_1"),
    ("90th percentile", "latency_ms.batch_1.p90", None),
    ("Latency, batch 32", "latency_ms.batch_32.median", "speedup_batch_32"),
    ("90th percentile", "latency_ms.batch_32.p90", None),
)


def roles(scores: Scores) -> tuple[Role, ...]:
    """Return the roles that were measured, the teacher first."""
    return tuple(role for role in ROLES if scores["models"][role] is not None)


def rows(scores: Scores) -> list[FigureRow]:
    """Return the comparison line by line, the task's metrics first, one cell for each of ``roles(scores)``."""
    task = scores["task"]
    metrics = [
        (label_of(task, name), name, "retention" if name == task["metric"] else None) for name in task["metrics"]
    ]
    return [
        FigureRow(
            label,
            tuple(figure(scores, f"models.{role}.{key}") for role in roles(scores)),
            figure(scores, f"comparison.{gain}") if gain else None,
        )
        for label, key, gain in [*metrics, *LINES]
    ]


def last_metric(scores: Scores) -> str:
    """Return the label of the last of the task's metrics, after which a table has a line."""
    return label_of(scores["task"], list(scores["task"]["metrics"])[-1])


def alike(scores: Scores) -> Figure | None:
    """Return how alike compressed model and reference answer, the task's leading figure; ``None`` where none is."""
    name = next(iter(scores["task"]["alike"]), None)
    if name is None or scores["comparison"]["likeness"].get(name) is None:
        return None
    key = name if name in scores["comparison"] else f"likeness.{name}"
    return figure(scores, f"comparison.{key}")


def differing(scores: Scores) -> tuple[Figure, Figure] | None:
    """Return how many answers of the file differ from the network's in PyTorch, and of how many."""
    if scores["comparison"].get("flips") is None:
        return None
    return figure(scores, "comparison.flips"), figure(scores, "comparison.flips_of")


def headline(scores: Scores) -> list[tuple[Figure, str]]:
    """Return the run in three figures and the words that follow each; of the two speedups the smaller one."""
    comparison = scores["comparison"]
    slowest = min("speedup_batch_1", "speedup_batch_32", key=lambda key: comparison[key])  # type: ignore[literal-required]
    reference, _ = reference_of(scores)
    whose = "the teacher’s" if reference == "teacher" else "the dense student’s"
    return [
        _more_or_less(figure(scores, "comparison.size_ratio"), "smaller", "larger"),
        _more_or_less(figure(scores, f"comparison.{slowest}"), "faster", "slower"),
        _quality(scores, reference, whose),
    ]


def _quality(scores: Scores, reference: Role, whose: str) -> tuple[Figure, str]:
    """Return what is kept of the quality; of decibels, whose ratio says little, both values."""
    task, metric = scores["task"], scores["task"]["metric"]
    noun = noun_of(task, metric)
    if task["metrics"][metric]["format"] != "decibel":
        return figure(scores, "comparison.retention"), f"of {whose} {noun}"
    before = figure(scores, f"models.{reference}.{metric}").text
    return figure(scores, f"models.compressed.{metric}"), f"{noun}, {whose} is {before}"


def sentence(scores: Scores) -> str:
    """Return the headline as plain text: ``27.3× smaller, 8.1× faster, 99.1 % of the teacher’s accuracy``."""
    return ", ".join(f"{number.text} {words}" for number, words in headline(scores))


def _more_or_less(ratio: Figure, more: str, less: str) -> tuple[Figure, str]:
    if ratio.value >= 1 or not ratio.value:
        return ratio, more
    return Figure(ratio.key, ratio.value, times(1 / ratio.value)), less
