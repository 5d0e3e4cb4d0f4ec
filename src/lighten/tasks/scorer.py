"""Scorer: a task's metrics of one model, or of two compared, over batches and ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric

from lighten.tasks.task import Measured, Task


class Scorer:
    """Sums a task's metrics over batches and ranks; a plain object, in no state dict.

    Args:
        metrics: what :meth:`Task.metrics` or :meth:`Task.likeness` returns.
        device: where answers are.
    """

    def __init__(self, metrics: Mapping[str, Metric | Measured], device: torch.device) -> None:
        self.measured = {name: m if isinstance(m, Measured) else Measured(m) for name, m in metrics.items()}
        for measured in self.measured.values():
            measured.metric.to(device)
        self.rows = SumMetric(nan_strategy="disable").to(device)

    @torch.no_grad()
    def update(self, ours: Tensor, theirs: Tensor) -> None:
        """Add rows: answers and labels, or the answers of two models."""
        self.rows.update(len(ours))
        if not len(ours):
            return
        for measured in self.measured.values():
            measured.metric.update(*measured.feed(ours, theirs))

    def compute(self) -> dict[str, Tensor] | None:
        """Return scalars by name, or ``None`` if there was no row; every rank must call it."""
        rows = self.rows.compute()
        if not rows:
            return None
        values: dict[str, Tensor] = {}
        for name, measured in self.measured.items():
            if rows < measured.least:
                continue
            found = measured.metric.compute()
            values |= {name: found} if measured.read is None else measured.read(found)
        return values


def scorer_of(task: Task, outputs: int, device: torch.device) -> Scorer:
    """Return what sums a task's metrics of one model."""
    return Scorer(task.metrics(outputs), device)


def likeness_of(task: Task, outputs: int, device: torch.device) -> Scorer:
    """Return what sums how alike two models answer."""
    return Scorer(task.likeness(outputs), device)
