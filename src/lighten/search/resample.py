"""A task's leading metric of samples drawn again and again: as it says, by what each adds to it, or by all rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

from lighten.tasks.task import Measured, Task

Batches = Sequence[tuple[Tensor, Tensor]]
"""Labels and answers."""


def resampled(task: Task, batches: Batches) -> "Sums | Rows | Weighted":
    """Return the leading metric of a network's answers, ready to be read for any weights of the samples.

    Args:
        task: what is answered.
        batches: labels, as ``Task.check_labels`` returns them, and answers; one or more.
    """
    measured = leading(task, batches)
    metric = measured.metric
    if hasattr(metric, "weighted"):
        return Weighted(task, metric)
    adds_up = all(
        isinstance(value, Tensor) and metric._reductions[key] is dim_zero_sum
        for key, value in metric.metric_state.items()
    )
    return Sums(task, measured, batches) if adds_up else Rows(task, measured, batches)


def leading(task: Task, batches: Batches) -> Measured:
    """Return what measures the metric that leads, having seen all samples."""
    metrics = task.metrics(task.outputs_of(batches[0][1]))
    found = {name: m if isinstance(m, Measured) else Measured(m) for name, m in metrics.items()}
    order = sorted(found, key=lambda name: name != task.metric)  # the one of its name first
    for name in order:
        measured = found[name]
        for labels, answers in batches:
            rows = task.rows(answers, labels)
            if len(rows[0]):
                measured.metric.update(*measured.feed(*rows))
        if name == task.metric and measured.read is None:
            return measured
        if measured.read is not None and task.metric in measured.read(measured.metric.compute()):
            return measured
    raise AssertionError(f"{task.name} reports {task.metric} but does not measure it")


class Sums:
    """A metric whose state is a sum over samples: drawn samples give a weighted sum of what each adds.

    Args:
        task: what is answered.
        measured: its metric, having seen all samples.
        batches: labels and answers.

    Attributes:
        rows: what each sample adds, float64 (samples, numbers).
    """

    def __init__(self, task: Task, measured: Measured, batches: Batches) -> None:
        self.task = task
        self.measured = measured
        self.shapes = {key: value.shape for key, value in _state(measured).items()}
        self.rows = np.stack(
            [self._of(answers[i : i + 1], labels[i : i + 1]) for labels, answers in batches for i in range(len(labels))]
        )

    def values(self, weights: np.ndarray) -> list[float]:
        """Return the metric for each row of weights (rows, samples)."""
        return [self._value(total) for total in weights @ self.rows]

    def _of(self, answers: Tensor, labels: Tensor) -> np.ndarray:
        metric = self.measured.metric
        metric.reset()
        rows = self.task.rows(answers, labels)
        if len(rows[0]):
            metric.update(*self.measured.feed(*rows))
        state = _state(self.measured)
        return np.concatenate(
            [state[key].double().expand(shape).flatten().numpy() for key, shape in self.shapes.items()]
        )

    def _value(self, total: np.ndarray) -> float:
        metric = self.measured.metric
        start = 0
        for key, shape in self.shapes.items():
            size = math.prod(shape)
            setattr(metric, key, torch.from_numpy(total[start : start + size]).view(shape))
            start += size
        found = type(metric).compute(metric)  # the instance's asks for an update(), and keeps what it found
        return _read(self.task, self.measured, found)


class Rows:
    """A metric that keeps more than sums: it sees the rows of all samples that were drawn, each time.

    Args:
        task: what is answered.
        measured: its metric.
        batches: labels and answers.

    Attributes:
        rows: the answers of each sample, (samples, numbers), by which two networks are compared.
    """

    def __init__(self, task: Task, measured: Measured, batches: Batches) -> None:
        self.task = task
        self.measured = measured
        each = [
            task.rows(answers[i : i + 1], labels[i : i + 1]) for labels, answers in batches for i in range(len(labels))
        ]
        counts = np.array([len(answers) for answers, _ in each])
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        self._answers, self._labels = (torch.cat(part) for part in zip(*each, strict=True))
        self.rows = self._answers.numpy()

    def values(self, weights: np.ndarray) -> list[float]:
        """Return the metric for each row of weights (rows, samples), which are whole numbers."""
        return [self._value(row.astype(np.int64)) for row in weights]

    def _value(self, weights: np.ndarray) -> float:
        metric = self.measured.metric
        metric.reset()
        drawn = np.repeat(np.arange(len(weights)), weights)
        places = [np.arange(self._counts[i]) + self._starts[i] for i in drawn]
        kept = torch.from_numpy(np.concatenate(places))
        metric.update(*self.measured.feed(self._answers[kept], self._labels[kept]))
        return _read(self.task, self.measured, metric.compute())


class Weighted:
    """A metric that says itself what it comes to for any weights of its samples.

    Args:
        task: what is answered.
        metric: having seen all samples. Its ``weighted(weights)`` returns figures by name, ``seen()`` what they come
            from.

    Attributes:
        rows: what two networks are compared by.
    """

    def __init__(self, task: Task, metric: Any) -> None:
        self.name = task.metric
        self.metric = metric
        self.rows: np.ndarray = metric.seen().numpy()

    def values(self, weights: np.ndarray) -> list[float]:
        """Return the metric for each row of weights (rows, samples)."""
        return self.metric.weighted(torch.from_numpy(weights))[self.name].tolist()


def _state(measured: Measured) -> dict[str, Tensor]:
    return {key: value for key, value in measured.metric.metric_state.items() if isinstance(value, Tensor)}


def _read(task: Task, measured: Measured, found: Any) -> float:
    return float(found if measured.read is None else measured.read(found)[task.metric])
