"""What tasks share whose answers are logits of classes, one choice a sample, a token or a pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from lighten.errors import UserError
from lighten.tasks.losses import IGNORED, cross_entropy, soft_labels
from lighten.tasks.task import Meaning, Measured, PartScores, Task, named

AGREEMENT = Meaning("Same answers", "percent")
KL = Meaning("KL divergence in nats", lower_is_better=True)


@dataclass(frozen=True, kw_only=True)
class ClassTask(Task):
    """Answers are logits with classes in ``channel_dim``; labels are class indices, -100 or ``ignored`` for none."""

    alike: ClassVar[Mapping[str, Meaning]] = {"agreement": AGREEMENT, "kl": KL}
    label_loss: ClassVar[str] = "cross_entropy"
    ranks: ClassVar[bool] = True
    reads: ClassVar[str] = "classes"
    answers_are: ClassVar[str] = "logits"
    outputs_are: ClassVar[str] = "classes"
    fit_text: ClassVar[str] = "one label for each row of logits"

    @property
    def left_out(self) -> tuple[int, ...]:
        """The labels that count nowhere."""
        return (IGNORED,)

    def check_labels(self, labels: Any) -> Tensor:
        """Return the labels of a batch; they must be whole numbers."""
        labels = super().check_labels(labels)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise UserError(f"labels are {labels.dtype}, expected {self.label_text}; convert them with labels.long()")
        return labels

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether there is a label for each row of logits."""
        return labels.shape == answers.movedim(self.channel_dim, -1).shape[:-1]

    def counted(self, labels: Tensor) -> Tensor:
        """Return which labels are not left out."""
        there = labels != IGNORED
        for value in self.left_out:
            there = there & (labels != value)
        return there

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor:
        """Return which labels that count are no class."""
        return self.counted(labels) & ((labels < 0) | (labels >= outputs))

    def range_text(self, outputs: int) -> str:
        """Return which numbers classes have."""
        return f"0 to {outputs - 1}; number the classes from zero, or set num_classes"

    def range_problem(self, labels: Tensor, outputs: int) -> str | None:
        """Return that labels are no classes, if so."""
        known = labels[self.counted(labels)]
        low, high = (known.min().item(), known.max().item()) if len(known) else (0, 0)
        if low >= 0 and high < outputs:
            return None
        return (
            f"labels run from {low} to {high}, expected 0 to {outputs - 1} for {outputs} classes; "
            "map them to class indices, or give the model more classes"
        )

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the cross-entropy with the labels that count."""
        logits, labels = self._flat(answers), labels.flatten(1) if labels.ndim > 1 else labels
        labels = torch.where(self.counted(labels), labels, IGNORED)
        return cross_entropy(logits, labels, smoothing, count=count, weights=weights)

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the divergence of softened distributions, mean over samples, tokens or pixels."""
        ours, theirs = self._flat(answers), self._flat(teacher)
        return soft_labels(ours, theirs, temperature, mask=mask, count=count, weights=weights)

    def rows(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (rows, classes) and labels (rows,) that count."""
        there = self.counted(labels)
        return answers.movedim(self.channel_dim, -1).float()[there], labels[there].long()

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the share of equal answers and KL(theirs || ours) in nats, at temperature one."""
        return {
            "agreement": Measured(_mean(), lambda ours, theirs: (self.same(ours, theirs).float(),)),
            "kl": Measured(_mean(), lambda ours, theirs: (divergence(ours, theirs),)),
        }

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return for each row whether the largest logit is of the same class."""
        return ours.argmax(-1) == theirs.argmax(-1)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return minus each sample's cross-entropy."""
        logits = answers.float().movedim(self.channel_dim, 1)
        marked = torch.where(self.counted(labels), labels, IGNORED).long()
        values = F.cross_entropy(logits, marked, ignore_index=IGNORED, reduction="none").flatten(
            1 if labels.ndim > 1 else 0
        )
        return -values if values.ndim == 1 else -values.sum(1) / self.counted(labels).flatten(1).sum(1).clamp_min(1)

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return the classes, a name a sample, token or pixel; with the odds where there is one a sample."""
        odds = answers.movedim(self.channel_dim, -1).float().softmax(-1)
        best, classes = odds.max(-1)
        name = named(names, odds.shape[-1])
        if answers.ndim == 2:
            return [{"class": name[c], "odds": p} for c, p in zip(classes.tolist(), best.tolist(), strict=True)]
        return [[name[c] for c in row] for row in classes.flatten(1).tolist()]

    def _flat(self, answers: Tensor) -> Tensor:
        """Return logits (batch, classes) or (batch, places, classes)."""
        logits = answers.movedim(self.channel_dim, -1)
        return logits if logits.ndim < 4 else logits.flatten(1, -2)


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return KL(softmax(theirs) || softmax(ours)) of each row, in nats."""
    ours, theirs = F.log_softmax(ours.float(), -1), F.log_softmax(theirs.float(), -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def loss_of_rows() -> Measured:
    """Return the mean cross-entropy of rows.

    A loss a row: torchmetrics 1.9 drops weights together with its NaN handling.
    """
    return Measured(_mean(), lambda logits, labels: (F.cross_entropy(logits, labels, reduction="none"),))


def confusion(outputs: int, read: Any) -> Measured:
    """Return a confusion matrix, labels by rows and answers by columns, and what is read off it."""
    matrix = MulticlassConfusionMatrix(num_classes=outputs, validate_args=False)
    return Measured(matrix, lambda logits, labels: (logits.argmax(-1), labels), read)


def scores_of_classes(matrix: Tensor) -> dict[str, Tensor]:
    """Return accuracy, macro-F1 (of the classes that occur in labels or answers) and the lowest recall of a class."""
    right, labelled, answered = (x.double() for x in (matrix.diagonal(), matrix.sum(1), matrix.sum(0)))
    occurs, there = labelled + answered > 0, labelled > 0
    f1, recall = 2 * right / (labelled + answered), right / labelled
    return {
        "accuracy": right.sum() / labelled.sum(),
        "macro_f1": f1[occurs].mean(),
        "worst_class": recall[there].min(),
    }


class ByClass(PartScores):
    """A figure of each class, read off a confusion matrix.

    Args:
        outputs: classes.
        names: of the classes.
        metric: ``"recall"`` or ``"iou"``.
        label: how tables call it.
    """

    kind = "class"

    def __init__(self, outputs: int, names: Sequence[str], metric: str, label: str) -> None:
        self.names = named(names, outputs)
        self.metric = metric
        self.meaning = Meaning(label, "percent")
        self.matrix = torch.zeros(outputs, outputs, dtype=torch.int64)

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        size = len(self.matrix)
        self.matrix += (labels * size + answers.argmax(-1)).bincount(minlength=size**2).view(size, size)

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return the figure of each class; ``None`` for one without samples."""
        right, labelled, answered = (
            x.double() for x in (self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0))
        )
        values = right / (labelled if self.metric == "recall" else labelled + answered - right)
        there = labelled > 0
        return self.names, [v if t else None for v, t in zip(values.tolist(), there.tolist(), strict=True)]


def _mean() -> MeanMetric:
    return MeanMetric(nan_strategy="disable")
