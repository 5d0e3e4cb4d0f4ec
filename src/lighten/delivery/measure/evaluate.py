"""Evaluation of several models on the same data, batch by batch: metrics, parts, likeness and what a report shows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.delivery.runtimes.runners import Runner
from lighten.errors import UserError
from lighten.tasks.scorer import Scorer, likeness_of, scorer_of
from lighten.tasks.task import PartScores, Task
from lighten.utils.batch import BatchFormat

CPU = torch.device("cpu")


@dataclass
class Difference:
    """How far the answers of two models are apart.

    Attributes:
        likeness: by the names of :meth:`Task.likeness`.
        flips: answers that do not mean the same; ``None`` where answers are never quite equal.
        flips_of: answers that count.
        error: Euclidean distance of the answers, relative to the norm of the second model's.
    """

    likeness: dict[str, float]
    flips: int | None
    flips_of: int
    error: float


@dataclass
class Evaluation:
    """What became of it, by the names of the models.

    Attributes:
        samples: how many there were.
        outputs: classes, targets or channels.
        metrics: of each model, by the names of :meth:`Task.metrics`.
        parts: names and values part by part, where the task has parts.
        part_scores: which they are; ``None`` for a task without.
        differences: by pairs of names.
        sample_scores: one number a sample, more for better, where a report shows pictures.
    """

    samples: int
    outputs: int
    metrics: dict[str, dict[str, float]]
    parts: dict[str, tuple[list[str], list[float | None]]]
    part_scores: PartScores | None
    differences: dict[tuple[str, str], Difference]
    sample_scores: dict[str, np.ndarray]


Listener = Callable[[Tensor, Tensor, Mapping[str, tuple[Tensor, Tensor]]], None]
"""Is told of each batch: labels that count, and by model its answers and rows."""


def evaluate(
    task: Task,
    runners: Mapping[str, Runner],
    dataloader: Iterable[Any],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    names: Sequence[str] = (),
    form: BatchFormat = BatchFormat(),  # noqa: B008 (frozen)
    listeners: Sequence[Listener] = (),
) -> Evaluation:
    """Run all models on each batch and sum up what the task wants to know; no batch is kept.

    Args:
        task: what is answered.
        runners: by name.
        dataloader: labelled batches.
        pairs: of models to compare, the first one's answers against the second's.
        names: of classes, labels or targets.
        form: what the parts of a batch are.
        listeners: told of each batch.

    Raises:
        UserError: if there are no data, or labels or answers that the task cannot use.
    """
    models = {name: _Model(runner) for name, runner in runners.items()}
    compared = {pair: _Pair() for pair in pairs}
    samples = outputs = 0
    for batch in dataloader:
        parts = form.labelled(batch)
        labels = _labels(task, parts.labels, next(iter(runners.values())).name)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        kept = labels
        for name, model in models.items():
            answers = _answers(task, model.runner, parts.call, labels)
            outputs = task.outputs_of(answers)
            rows, kept = model.add(task, names, answers, labels)
            found[name] = answers, rows
        for (ours, theirs), pair in compared.items():
            pair.add(task, outputs, found[ours], found[theirs])
        for listener in listeners:
            listener(labels, kept, found)
        samples += len(labels)
    if not samples:
        raise UserError(f"{next(iter(runners.values())).name}: no data to measure on; expected at least one batch")
    return Evaluation(
        samples,
        outputs,
        {name: model.metrics() for name, model in models.items()},
        {name: model.parts.compute() for name, model in models.items() if model.parts is not None},
        next((model.parts for model in models.values()), None),
        {names_: pair.difference() for names_, pair in compared.items()},
        {name: np.concatenate(model.samples) for name, model in models.items() if model.samples},
    )


@dataclass
class _Model:
    runner: Runner
    scorer: Scorer | None = None
    parts: PartScores | None = None
    samples: list[np.ndarray] = field(default_factory=list)

    def add(self, task: Task, names: Sequence[str], answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch and return its rows: answers and labels that count."""
        outputs = task.outputs_of(answers)
        rows, kept = task.rows(answers, labels)
        if self.scorer is None:
            self.scorer, self.parts = scorer_of(task, outputs, CPU), task.parts(outputs, names)
        self.scorer.update(rows, kept)
        if self.parts is not None:
            self.parts.update(rows, kept)
        if task.exhibit == "pictures":
            self.samples.append(task.sample_scores(answers, labels).float().numpy())
        return rows, kept

    def metrics(self) -> dict[str, float]:
        values = self.scorer.compute() if self.scorer is not None else None
        if values is None:
            raise UserError(f"{self.runner.name}: no label of the data counts; expected some to measure on")
        return {name: _number(value) for name, value in values.items()}


@dataclass
class _Pair:
    scorer: Scorer | None = None
    flips: int | None = None
    flips_of: int = 0
    gap: float = 0.0
    size: float = 0.0

    def add(self, task: Task, outputs: int, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
        if self.scorer is None:
            self.scorer = likeness_of(task, outputs, CPU)
        self.scorer.update(ours[1], theirs[1])
        same = task.same(ours[1], theirs[1])
        if same is not None:
            self.flips = (self.flips or 0) + int((~same).sum())
            self.flips_of += same.numel()
        self.gap += _square_sum(ours[0] - theirs[0])
        self.size += _square_sum(theirs[0])

    def difference(self) -> Difference:
        found = (self.scorer.compute() if self.scorer is not None else None) or {}
        likeness = {name: _number(value) for name, value in found.items()}
        error = round(self.gap**0.5 / max(self.size**0.5, 1e-6), 12)
        return Difference(likeness, self.flips, self.flips_of, error)


def _square_sum(values: Tensor) -> float:
    """Return the sum of squares in float64, without a copy in it."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _number(value: Tensor) -> float:
    """Return a scalar; of one in float32 the digits that it has."""
    return float(value) if value.dtype == torch.float64 else float(f"{float(value):.7g}")


def _labels(task: Task, labels: Any, name: str) -> Tensor:
    given = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
    try:
        return task.check_labels(given.cpu() if isinstance(given, Tensor) else given)
    except UserError as error:
        raise UserError(f"{name}: {error}, as task={task.name!r} has them; task= says what else is answered") from error


def _answers(task: Task, runner: Runner, call: Any, labels: Tensor) -> Tensor:
    """Return a model's answers to a batch.

    Raises:
        UserError: if they are not finite or not the task's, or the labels are not the model's.
    """
    answers = torch.from_numpy(np.ascontiguousarray(runner.run(runner.feed(call))))
    if not bool(answers.isfinite().all()):
        raise UserError(f"{runner.name}: its {task.answers_are} hold NaN or infinity; nothing was written")
    whole = task.answer_dims in (None, answers.ndim)
    if not whole or not task.fits(answers, labels):
        raise UserError(
            f"{runner.name}: gives {task.answers_are} of shape {tuple(answers.shape)} for labels of shape "
            f"{tuple(labels.shape)}, expected {task.answer_text} and {task.fit_text}; measure it on its own data"
        )
    outputs = task.outputs_of(answers)
    bad = task.bad_labels(labels, outputs)
    if bad is not None and bool(bad.any()):
        raise UserError(
            f"{runner.name}: answers {outputs} {task.outputs_are}, but there is a {task.bad_text(labels, bad)}, "
            f"expected {task.range_text(outputs).split(';')[0]}; measure it on its own data"
        )
    return answers
