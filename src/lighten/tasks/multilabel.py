"""Tasks: multilabel."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("multilabel")
@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Several labels a sample, or none: labels (batch, labels) in [0, 1], answers (batch, labels)."""
