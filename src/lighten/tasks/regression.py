"""Regression: one number a sample, or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef, R2Score, RelativeSquaredError

from lighten.tasks.numbers import NumberTask, as_floats
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured, PartScores, named

MAX_PARTS = 10
"""The parts that the range of one target is cut into."""


@register_task("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(NumberTask):
    """Numbers: labels (batch,) or (batch, targets), answers (batch, targets), both standardised by mean and std.

    Metrics are ``r2`` (coefficient of determination, mean over targets), ``mae`` and ``rmse`` (mean absolute and root
    mean squared error in the targets' unit, mean over targets), ``pearson`` (mean over targets; zero of one that does
    not vary), ``worst_class``, the lowest Pearson correlation of a target, and ``loss``, the squared error of the
    standardised numbers.

    Attributes:
        unit: of the targets, for tables, such as ``"USD"``.
    """

    unit: str = ""

    reported: ClassVar[Mapping[str, Meaning]] = {
        "r2": Meaning("R²", "number"),
        "mae": Meaning("Mean absolute error", "amount", lower_is_better=True),
        "rmse": Meaning("Root mean squared error", "amount", lower_is_better=True),
        "pearson": Meaning("Pearson correlation", "number"),
    }
    alike: ClassVar[Mapping[str, Meaning]] = {
        "relative_error": Meaning("Relative difference", "percent", lower_is_better=True)
    }
    label_dims: ClassVar[tuple[int, ...]] = (1, 2)
    answer_dims: ClassVar[int] = 2
    label_text: ClassVar[str] = "(batch, outputs)"
    answer_text: ClassVar[str] = "(batch, outputs)"
    pipelines: ClassVar[Mapping[str, str]] = {"text": "text-classification", "table": "tabular-regression"}
    head: ClassVar[str] = "regression"
    exhibit: ClassVar[str] = "scatter"

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether there is a label for each answer."""
        return labels.numel() == answers.numel() and len(labels) == len(answers)

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        self._check_channels(outputs)
        several: dict[str, Any] = {"num_outputs": outputs} if outputs > 1 else {}
        squares = MeanMetric(nan_strategy="disable")
        return {
            "r2": Measured(R2Score(), _columns, least=2),
            "mae": Measured(MeanAbsoluteError(**several), self._in_unit, lambda each: {"mae": each.mean()}),
            "rmse": Measured(
                MeanSquaredError(squared=False, **several), self._in_unit, lambda each: {"rmse": each.mean()}
            ),
            "pearson": Measured(PearsonCorrCoef(num_outputs=outputs), _columns, _of_targets, least=2),
            "loss": Measured(squares, lambda x, y: ((x - y).square().mean(-1),)),
        }

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the root of the relative squared error: the difference, relative to how the second model varies."""
        error = RelativeSquaredError(num_outputs=outputs, squared=False)
        return {"relative_error": Measured(error, _columns, least=2)}

    def parts(self, outputs: int, names: Sequence[str]) -> PartScores:
        """Return the mean absolute error by tenths of the labels, or by target where there are several."""
        return ByTarget(self, outputs, names) if outputs > 1 else ByDecile(self)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return minus each sample's squared error."""
        answers, labels = self.rows(answers, labels)
        return -(answers - labels).square().mean(-1)

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return the numbers in their unit; by name where there are several."""
        values = self.restored(answers.float())
        if answers.shape[1] == 1 or len(names) != answers.shape[1]:
            return [as_floats(row) for row in values]
        return [dict(zip(names, row, strict=True)) for row in values.tolist()]

    def _in_unit(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _columns(self.restored(answers), self.restored(labels))


class ByDecile(PartScores):
    """The mean absolute error of the tenths that the sorted labels fall into.

    Args:
        task: restores numbers in their unit.
    """

    kind, metric, meaning = "decile", "mae", Meaning("Mean absolute error", "amount", lower_is_better=True)

    def __init__(self, task: Regression) -> None:
        self.task = task
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        self.answers.append(self.task.restored(answers.double())[:, 0])
        self.labels.append(self.task.restored(labels.double())[:, 0])

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return the range and the error of each tenth, or of fewer parts of few samples."""
        labels, answers = torch.cat(self.labels), torch.cat(self.answers)
        order = labels.argsort(stable=True)
        names, values = [], []
        for part in order.tensor_split(min(MAX_PARTS, len(order))):
            names.append(f"{_shown(float(labels[part[0]]))} to {_shown(float(labels[part[-1]]))}")
            values.append(float((answers[part] - labels[part]).abs().mean()))
        return names, list(values)


class ByTarget(PartScores):
    """The mean absolute error of each target.

    Args:
        task: restores numbers in their unit.
        outputs: targets.
        names: of the targets.
    """

    kind, metric, meaning = "target", "mae", Meaning("Mean absolute error", "amount", lower_is_better=True)

    def __init__(self, task: Regression, outputs: int, names: Sequence[str]) -> None:
        self.task = task
        self.names = named(names, outputs)
        self.sums = torch.zeros(outputs, dtype=torch.float64)
        self.rows = 0

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        difference = self.task.restored(answers.double()) - self.task.restored(labels.double())
        self.sums += difference.abs().sum(0)
        self.rows += len(answers)

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return each target's error."""
        return self.names, (self.sums / max(1, self.rows)).tolist()


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _columns(answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as torchmetrics takes them: of one target without its dimension."""
    return (answers[:, 0], labels[:, 0]) if answers.shape[1] == 1 else (answers, labels)


def _of_targets(each: Tensor) -> dict[str, Tensor]:
    """Return mean and lowest correlation; a target that does not vary, in labels or answers, has none: zero."""
    each = torch.atleast_1d(each).nan_to_num(0.0)
    return {"pearson": each.mean(), "worst_class": each.min()}
