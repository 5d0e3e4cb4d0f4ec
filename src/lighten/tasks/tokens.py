"""Answers at the tokens of a text: a class for each, or the tokens that were masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lighten.tasks.classes import ByClass, ClassTask, confusion, loss_of_rows, scores_of_classes
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured


@dataclass(frozen=True, kw_only=True)
class TokenTask(ClassTask):
    """Labels int64 (batch, length), -100 for none; answers (batch, length, classes)."""

    channel_dim: ClassVar[int] = -1
    label_dims: ClassVar[tuple[int, ...]] = (2,)
    answer_dims: ClassVar[int] = 3
    answer_text: ClassVar[str] = "(batch, length, classes)"
    per_token: ClassVar[bool] = True

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return the shape of the tokens."""
        return (samples, None) if tokens is None else tuple(tokens)


@register_task("token_classification")
@dataclass(frozen=True, kw_only=True)
class TokenClassification(TokenTask):
    """A class for each token: labels int64 (batch, length), -100 for none; answers (batch, length, classes)."""

    reported: ClassVar[Mapping[str, Meaning]] = {
        "macro_f1": Meaning("Macro-F1", "percent"), "accuracy": Meaning("Accuracy", "percent"),
    }  # fmt: skip
    label_text: ClassVar[str] = "(batch, length) of class indices"
    head: ClassVar[str] = "token_classification"
    pipelines: ClassVar[Mapping[str, str]] = {"text": "token-classification"}
    exhibit: ClassVar[str] = "confusion"

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return ``macro_f1``, ``accuracy``, ``worst_class`` (lowest recall) and ``loss`` (nats) of labelled tokens."""
        return {"confusion": confusion(outputs, scores_of_classes), "loss": loss_of_rows()}

    def parts(self, outputs: int, names: Sequence[str]) -> ByClass:
        """Return each class's recall."""
        return ByClass(outputs, names, "recall", "Found")


@register_task("masked_lm")
@dataclass(frozen=True, kw_only=True)
class MaskedLM(TokenTask):
    """The tokens that were masked, or the next ones of causal language models whose labels are their input ids.

    Labels int64 (batch, length), -100 for none; answers (batch, length, tokens).
    """

    reported: ClassVar[Mapping[str, Meaning]] = {
        "accuracy": Meaning("Accuracy", "percent"), "loss": Meaning("Loss in nats", lower_is_better=True),
    }  # fmt: skip
    label_text: ClassVar[str] = "(batch, length) of tokens"
    head: ClassVar[str] = "masked_lm"
    next_tokens: ClassVar[bool] = True
    pipelines: ClassVar[Mapping[str, str]] = {"text": "fill-mask"}

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return ``accuracy`` and ``loss`` (cross-entropy in nats) of the labelled tokens."""
        accuracy = MulticlassAccuracy(average="micro", num_classes=outputs, validate_args=False)
        return {
            "accuracy": Measured(accuracy, lambda logits, labels: (logits.argmax(-1), labels)),
            "loss": loss_of_rows(),
        }
