"""Several labels a sample, or none: each a question of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

from lighten.tasks.classes import AGREEMENT
from lighten.tasks.losses import binary_cross_entropy, soft_binary_labels
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured, PartScores, Task, named


@register_task("multilabel")
@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Several labels a sample: labels (batch, labels) in [0, 1], answers logits of the same shape.

    Metrics are ``macro_f1``, ``accuracy`` (of single answers), ``loss`` (binary cross-entropy in nats) and
    ``worst_class``, the lowest F1 of a label.
    """

    reported: ClassVar[Mapping[str, Meaning]] = {
        "macro_f1": Meaning("Macro-F1", "percent"), "accuracy": Meaning("Accuracy", "percent"),
    }  # fmt: skip
    alike: ClassVar[Mapping[str, Meaning]] = {"agreement": AGREEMENT}
    label_loss: ClassVar[str] = "cross_entropy"
    label_dims: ClassVar[tuple[int, ...]] = (2,)
    answer_dims: ClassVar[int] = 2
    label_text: ClassVar[str] = "(batch, outputs)"
    answer_text: ClassVar[str] = "(batch, classes)"
    answers_are: ClassVar[str] = "logits"
    outputs_are: ClassVar[str] = "classes"
    fit_text: ClassVar[str] = "one label for each output"
    pipelines: ClassVar[Mapping[str, str]] = {
        "image": "image-classification",
        "text": "text-classification",
        "table": "tabular-classification",
    }
    reads: ClassVar[str] = "flags"

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether the shapes are the same."""
        return labels.shape == answers.shape

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples, labels)."""
        return samples, outputs

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor:
        """Return which labels are not in [0, 1]."""
        return ~((labels >= 0) & (labels <= 1))

    def range_text(self, outputs: int) -> str:
        """Return what labels are."""
        return "0 to 1; fix the labels"

    def range_problem(self, labels: Tensor, outputs: int) -> str | None:
        """Return that labels are not in [0, 1], if so."""
        if not bool(self.bad_labels(labels, outputs).any()):
            return None
        low, high = labels.min().item(), labels.max().item()
        return f"labels run from {low:g} to {high:g}, expected yes or no, 0 to 1, for each class"

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the binary cross-entropy, mean over samples and labels."""
        return binary_cross_entropy(answers, labels, weights=weights)

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the divergence of softened yes-or-no answers."""
        return soft_binary_labels(answers, teacher, temperature, weights=weights)

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        settings: dict[str, Any] = {"num_labels": outputs, "validate_args": False}
        losses = MeanMetric(nan_strategy="disable")
        return {
            "accuracy": Measured(MultilabelAccuracy(average="micro", **settings), _answered),
            "macro_f1": Measured(MultilabelF1Score(average="macro", **settings), _answered),
            "worst_class": Measured(
                MultilabelF1Score(average="none", **settings), _answered, lambda each: {"worst_class": each.min()}
            ),
            "loss": Measured(losses, lambda x, y: (_losses(x, y).mean(-1),)),
        }

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the share of single answers that are equal."""
        mean = MeanMetric(nan_strategy="disable")
        return {"agreement": Measured(mean, lambda ours, theirs: (self.same(ours, theirs).float(),))}

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return for each label of each row whether both say yes or both say no."""
        return (ours > 0) == (theirs > 0)

    def parts(self, outputs: int, names: Sequence[str]) -> "ByLabel":
        """Return each label's F1."""
        return ByLabel(outputs, names)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return minus each sample's cross-entropy."""
        return -_losses(answers.float(), labels).mean(-1)

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return the odds of each label, by name."""
        name = named(names, answers.shape[1])
        return [dict(zip(name, row, strict=True)) for row in torch.sigmoid(answers.float()).tolist()]


class ByLabel(PartScores):
    """F1 of each label.

    Args:
        outputs: labels.
        names: of the labels.
    """

    kind, metric, meaning = "label", "f1", Meaning("F1", "percent")

    def __init__(self, outputs: int, names: Sequence[str]) -> None:
        self.names = named(names, outputs)
        self.counts = torch.zeros(3, outputs)

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        said, true = answers > 0, labels.round().bool()
        self.counts += torch.stack([(said & true).sum(0), said.sum(0), true.sum(0)])

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return F1 by label; ``None`` for one that no sample has."""
        both, said, true = self.counts.double()
        f1 = (2 * both / (said + true)).tolist()
        return self.names, [value if count else None for value, count in zip(f1, true.tolist(), strict=True)]


def _answered(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(logits), labels.round().long()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
