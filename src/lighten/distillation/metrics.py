"""Metrics of student and teacher over an evaluation epoch, equal on all ranks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import PearsonCorrCoef

from lighten.distillation.loss import IGNORED
from lighten.errors import UserError

BINS = 15
"""Of the calibration error, as Guo et al. 2017 take."""


class EpochMetrics:
    """Metrics of student and teacher over an evaluation epoch, and how far apart they are.

    ``student/…`` and ``teacher/…`` as :class:`TaskMetrics` has them; ``gap/accuracy``, ``gap/loss``, ``gap/macro_f1``
    and ``gap/pearson`` (teacher - student), ``gap/retention`` (student / teacher); ``gap/agreement`` and ``gap/kl`` as
    :class:`Agreement` has them.

    A plain object around torchmetrics: nothing of it is in the state dict of the module that keeps it.

    Args:
        task: as ``DistillationModule`` takes it.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self._models: dict[str, TaskMetrics] = {}
        self._agreement: Agreement | None = None

    def update(self, logits: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add a batch: labels, and logits of the ``student`` and, where there is one, of the ``teacher``."""
        for name, values in logits.items():
            if name not in self._models:
                self._models[name] = TaskMetrics(values.shape[-1], values.device, self.task)
            self._models[name].update(values, labels)
        if "teacher" in logits and self.task in ("classification", "masked_lm"):
            self._agreement = self._agreement or Agreement(logits["student"].device)
            self._agreement.update(logits["student"], logits["teacher"], labels)

    def compute(self, data: str | None) -> dict[str, Tensor]:
        """Return scalars by the names that are logged; every rank must call it.

        Args:
            data: ``"validation"`` or ``"test"``; ``None`` for a few batches alone, which may have no label that counts.

        Raises:
            UserError: if no label counts.
        """
        values: dict[str, Tensor] = {}
        for name, metrics in self._models.items():
            found = metrics.compute(name)
            if found is None and data is None:
                return {}
            if found is None:
                raise UserError(
                    f"every label of the {data} data is {IGNORED}, which leaves its sample out; expected some that "
                    "count: label them, or leave these data out"
                )
            values |= found
        return values | gaps(values) | ({} if self._agreement is None else self._agreement.compute())


def gaps(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``gap/<metric>``, teacher - student, and ``gap/retention``, student / teacher; empty without a teacher."""
    found = {
        f"gap/{name}": values[f"teacher/{name}"] - values[f"student/{name}"]
        for name in ("accuracy", "macro_f1", "pearson", "loss")
        if f"teacher/{name}" in values
    }
    if "teacher/accuracy" in values:
        found["gap/retention"] = values["student/accuracy"] / values["teacher/accuracy"].clamp_min(1e-9)
    return found


class TaskMetrics:
    """Metrics of one model, summed over batches and ranks: what they are depends on the task.

    Classification: ``accuracy``, ``macro_f1`` (mean over the classes that occur in labels or predictions), ``loss``
    (cross-entropy in nats), ``ece`` (expected calibration error, Guo et al. 2017, equation 3, of 15 bins) and
    ``worst_class``, the lowest recall of a class that occurs. Multi-label: ``accuracy`` (of single answers),
    ``macro_f1``, ``loss`` and ``worst_class``, the lowest F1 of a label. Regression: ``loss`` (squared error),
    ``pearson`` (mean over targets) and ``worst_class``, the lowest of a target. Masked language models: ``accuracy``
    and ``loss`` on masked tokens.

    Args:
        outputs: classes of the logits, or values of a regression.
        device: where they are.
        task: as ``DistillationModule`` takes it.
    """

    def __init__(self, outputs: int, device: torch.device, task: str = "classification") -> None:
        self.task = task
        self.metrics: dict[str, Metric] = {k: m.to(device) for k, m in _metrics(task, outputs).items()}
        self.loss = MeanMetric(nan_strategy="disable").to(device)
        self.samples = SumMetric(nan_strategy="disable").to(device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, classes), labels (batch,); (batch, length, …) of masked language models."""
        logits = logits.float()
        if self.task in ("classification", "masked_lm"):
            logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
        self.samples.update(len(labels))
        if not len(labels):
            return
        if self.task == "regression":
            labels = labels.float().reshape(logits.shape)
            self.loss.update((logits - labels).square().mean(-1))
        elif self.task == "multilabel":
            self.loss.update(F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(-1))
            logits, labels = torch.sigmoid(logits), labels.round().long()
        else:
            # a loss per sample: torchmetrics 1.9 drops weights together with its NaN handling
            self.loss.update(F.cross_entropy(logits, labels.long(), reduction="none"))
        probabilities = logits.softmax(-1) if "ece" in self.metrics else logits
        answers = logits if self.task in ("regression", "multilabel") else logits.argmax(-1)
        for name, metric in self.metrics.items():
            metric.update(probabilities if name == "ece" else answers, labels)

    def compute(self, prefix: str) -> dict[str, Tensor] | None:
        """Return ``{prefix}/<score>``, scalars, or ``None`` if there was no label; every rank must call it."""
        if not self.samples.compute():
            return None
        values = {name: metric.compute() for name, metric in self.metrics.items()}
        if "confusion" in values:
            values |= _of_classes(values.pop("confusion"))
        if "worst_class" in values and self.task == "multilabel":
            values["worst_class"] = values["worst_class"].min()
        if "pearson" in values:
            each = torch.atleast_1d(values["pearson"])
            values |= {"pearson": each.mean(), "worst_class": each.min()}
        return {f"{prefix}/{name}": value for name, value in {**values, "loss": self.loss.compute()}.items()}


def _of_classes(confusion: Tensor) -> dict[str, Tensor]:
    """Return what a confusion matrix says, labels by rows and answers by columns."""
    right, labelled, answered = (x.double() for x in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    occurs, there = labelled + answered > 0, labelled > 0
    f1, recall = 2 * right / (labelled + answered), right / labelled
    return {
        "accuracy": (right.sum() / labelled.sum()).float(),
        "macro_f1": f1[occurs].mean().float(),
        "worst_class": recall[there].min().float(),
    }


class Agreement:
    """How alike student and teacher answer, summed over batches and ranks: ``agreement`` and ``kl``.

    ``agreement`` is the share of samples with the same answer, ``kl`` the divergence KL(teacher || student) in nats,
    at temperature one.
    """

    def __init__(self, device: torch.device) -> None:
        self.metrics = {name: MeanMetric(nan_strategy="disable").to(device) for name in ("agreement", "kl")}

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Add a batch of logits, (batch, classes) twice; of masked language models where ``labels`` has one."""
        if student.ndim == 3:
            student, teacher = student[labels != IGNORED], teacher[labels != IGNORED]
        if not len(student):
            return
        self.metrics["agreement"].update((student.argmax(-1) == teacher.argmax(-1)).float())
        ours, theirs = F.log_softmax(student.float(), -1), F.log_softmax(teacher.float(), -1)
        self.metrics["kl"].update((theirs.exp() * (theirs - ours)).sum(-1))

    def compute(self) -> dict[str, Tensor]:
        """Return ``gap/agreement`` and ``gap/kl``; every rank must call it."""
        return {f"gap/{name}": metric.compute() for name, metric in self.metrics.items()}


def _metrics(task: str, outputs: int) -> dict[str, Metric]:
    settings: dict[str, Any] = {"validate_args": False}
    if task == "regression":
        return {"pearson": PearsonCorrCoef(num_outputs=outputs)}
    if task == "multilabel":
        settings["num_labels"] = outputs
        return {
            "accuracy": MultilabelAccuracy(average="micro", **settings),
            "macro_f1": MultilabelF1Score(average="macro", **settings),
            "worst_class": MultilabelF1Score(average="none", **settings),
        }
    settings["num_classes"] = outputs
    if task == "masked_lm":
        return {"accuracy": MulticlassAccuracy(average="micro", **settings)}
    return {
        "confusion": MulticlassConfusionMatrix(**settings),
        "ece": MulticlassCalibrationError(n_bins=BINS, norm="l1", **settings),
    }
