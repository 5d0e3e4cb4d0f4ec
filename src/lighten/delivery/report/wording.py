"""How a task's metrics are called and written, from what ``scores.json`` says of the task."""

from collections.abc import Callable, Mapping
from typing import Any

from lighten.delivery.measure.scores import describe_task
from lighten.tasks import task_of

Told = Mapping[str, Any]
"""The ``task`` entry of ``scores.json``."""

CLASSES: Told = describe_task(task_of("classification"))
"""What is meant where nothing says which task it is."""


def percent(share: float, digits: int = 2) -> str:
    """Return a share as per cent: ``0.9135`` is ``"91.35 %"``."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def four_digits(value: float) -> str:
    """Return a number with four digits, thousands apart: ``1234.6`` is ``"1,235"``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_of(task: Told, metric: str, digits: int = 2) -> Callable[[float], str]:
    """Return how values of a metric are written.

    Args:
        task: whose metric it is.
        metric: one of its metrics, or of its likeness.
        digits: behind the point, of per cent.
    """
    meaning = task["metrics"].get(metric) or task["alike"].get(metric) or {}
    kind = meaning.get("format", "number")
    if kind == "percent":
        return lambda value: percent(value, digits)
    if kind == "decibel":
        return lambda value: f"{value:.2f}\N{NO-BREAK SPACE}dB"
    unit = f"\N{NO-BREAK SPACE}{task['unit']}" if kind == "amount" and task.get("unit") else ""
    return lambda value: f"{four_digits(value)}{unit}"


def label_of(task: Told, metric: str) -> str:
    """Return what tables call a metric, or how alike answers are."""
    meaning = task["metrics"].get(metric) or task["alike"].get(metric)
    return str(meaning["label"]) if meaning else metric.replace("_", " ").capitalize()


def noun_of(task: Told, metric: str) -> str:
    """Return what a sentence calls a metric: ``accuracy``, but ``Macro-F1`` and ``PSNR``."""
    label = label_of(task, metric)
    return label if any(letter.isupper() or not letter.isascii() for letter in label[1:]) else label.lower()
