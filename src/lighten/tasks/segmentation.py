"""Segmentation: a class for each pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lighten.errors import UserError
from lighten.tasks.classes import ByClass, ClassTask, confusion, loss_of_rows, scores_of_classes
from lighten.tasks.losses import IGNORED
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured


@register_task("segmentation")
@dataclass(frozen=True, kw_only=True)
class Segmentation(ClassTask):
    """A class for each pixel: labels int64 (batch, height, width), answers (batch, classes, height, width).

    Metrics are ``mean_iou`` (intersection over union, mean over the classes that occur in labels or answers of all
    data together), ``accuracy`` of pixels, ``worst_class``, the lowest IoU of a class that is labelled, and ``loss``
    (cross-entropy in nats).

    Attributes:
        ignored: the label of pixels that count nowhere, beside -100.

    Raises:
        UserError: if ``ignored`` is no whole number.
    """

    ignored: int = 255

    reported: ClassVar[Mapping[str, Meaning]] = {
        "mean_iou": Meaning("Mean IoU", "percent"), "accuracy": Meaning("Pixel accuracy", "percent"),
    }  # fmt: skip
    label_dims: ClassVar[tuple[int, ...]] = (3,)
    answer_dims: ClassVar[int] = 4
    label_text: ClassVar[str] = "(batch, height, width) of class indices"
    answer_text: ClassVar[str] = "(batch, classes, height, width)"
    fit_text: ClassVar[str] = "one label for each pixel of the logits"
    pipelines: ClassVar[Mapping[str, str]] = {"image": "image-segmentation"}
    head: ClassVar[str] = "segmentation"
    exhibit: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        if isinstance(self.ignored, bool) or not isinstance(self.ignored, int):
            raise UserError(f"segmentation: ignored={self.ignored!r}, expected the label of pixels that do not count")

    @property
    def left_out(self) -> tuple[int, ...]:
        """The labels that count nowhere."""
        return IGNORED, self.ignored

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples, any, any)."""
        return samples, None, None

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        return {"confusion": confusion(outputs, _scores), "loss": loss_of_rows()}

    def parts(self, outputs: int, names: Sequence[str]) -> ByClass:
        """Return each class's intersection over union."""
        return ByClass(outputs, names, "iou", "IoU")

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return masks, uint8 or uint16 (height, width) of class indices."""
        dtype = np.uint8 if answers.shape[1] <= 256 else np.uint16
        return list(answers.argmax(1).cpu().numpy().astype(dtype))

    def picture(self, values: Tensor) -> Tensor:
        """Return class indices (height, width), -1 where a label counts nowhere."""
        if values.ndim == 3:
            return values.argmax(0)
        return torch.where(self.counted(values), values, -1)


def _scores(matrix: Tensor) -> dict[str, Tensor]:
    right, labelled, answered = (x.double() for x in (matrix.diagonal(), matrix.sum(1), matrix.sum(0)))
    iou = right / (labelled + answered - right)
    return {
        "mean_iou": iou[labelled + answered > 0].mean(),
        "accuracy": scores_of_classes(matrix)["accuracy"],
        "worst_class": iou[labelled > 0].min(),
    }
