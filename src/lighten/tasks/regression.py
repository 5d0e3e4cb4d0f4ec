"""Tasks: regression."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Numbers: labels and answers (batch, targets), standardised by mean and std."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unit: str = ""
