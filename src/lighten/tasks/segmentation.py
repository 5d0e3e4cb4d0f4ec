"""Tasks: segmentation."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("segmentation")
@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """A class for each pixel: labels int64 (batch, height, width), answers (batch, classes, height, width)."""

    ignored: int = 255
