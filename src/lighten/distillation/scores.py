"""How well a classifier does over an evaluation epoch, equal on all ranks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


class Scores:
    """Accuracy, macro-F1 and cross-entropy of one model, summed over batches and ranks.

    A plain object around torchmetrics: nothing of it is in the state dict of the module that keeps it.
    Macro-F1 is the mean over the classes that occur in labels or predictions.

    Args:
        num_classes: of the logits.
        device: where they are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        settings: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(average="micro", **settings),
                "macro_f1": MulticlassF1Score(average="macro", **settings),
            }
        ).to(device)
        self.loss = MeanMetric(nan_strategy="disable").to(device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, classes), labels (batch,)."""
        self.metrics.update(logits.argmax(dim=-1), labels)
        # a loss per sample: torchmetrics 1.9 drops weights together with its NaN handling
        self.loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))

    def compute(self, prefix: str) -> dict[str, Tensor]:
        """Return ``{prefix}/{accuracy,macro_f1,loss}``, scalars; every rank must call it."""
        values = {**self.metrics.compute(), "loss": self.loss.compute()}
        return {f"{prefix}/{name}": value for name, value in values.items()}
