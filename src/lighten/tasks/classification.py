"""Classification: one class a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError

from lighten.tasks.classes import ByClass, ClassTask, confusion, loss_of_rows, scores_of_classes
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured

BINS = 15
"""Of the calibration error, as Guo et al. 2017 take."""


@register_task("classification")
@dataclass(frozen=True, kw_only=True)
class Classification(ClassTask):
    """One class a sample: labels int64 (batch,), answers (batch, classes).

    Metrics are ``accuracy``, ``macro_f1`` (mean over the classes that occur in labels or answers), ``loss``
    (cross-entropy in nats), ``ece`` (expected calibration error, Guo et al. 2017, equation 3, of 15 bins) and
    ``worst_class``, the lowest recall of a class that occurs.
    """

    reported: ClassVar[Mapping[str, Meaning]] = {
        "accuracy": Meaning("Accuracy", "percent"), "macro_f1": Meaning("Macro-F1", "percent"),
    }  # fmt: skip
    taught_by: ClassVar[tuple[str, ...]] = ("soft_labels", "dkd", "dist")
    label_dims: ClassVar[tuple[int, ...]] = (1,)
    answer_dims: ClassVar[int] = 2
    label_text: ClassVar[str] = "(batch,) of class indices"
    answer_text: ClassVar[str] = "(batch, classes)"
    pipelines: ClassVar[Mapping[str, str]] = {
        "image": "image-classification",
        "text": "text-classification",
        "table": "tabular-classification",
    }
    exhibit: ClassVar[str] = "confusion"

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples,)."""
        return (samples,)

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        ece = MulticlassCalibrationError(num_classes=outputs, n_bins=BINS, norm="l1", validate_args=False)
        return {
            "confusion": confusion(outputs, scores_of_classes),
            "ece": Measured(ece, lambda logits, labels: (logits.softmax(-1), labels)),
            "loss": loss_of_rows(),
        }

    def parts(self, outputs: int, names: Sequence[str]) -> ByClass:
        """Return each class's recall."""
        return ByClass(outputs, names, "recall", "Found")
