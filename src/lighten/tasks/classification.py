"""Tasks: classification."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("classification")
@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class a sample: labels int64 (batch,), answers (batch, classes)."""
