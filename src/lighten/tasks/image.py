"""Tasks: image."""

from dataclasses import dataclass

from lighten.tasks.registry import register_task
from lighten.tasks.task import Task


@register_task("image")
@dataclass(frozen=True, kw_only=True)
class ImageToImage(Task):
    """A picture: labels and answers (batch, channels, height, width), standardised by mean and std a channel."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    data_range: float = 1.0
