"""WeightedLosses: the losses of a fit with their weights over time, and checks of their settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lighten.distillation.features import attention_transfer, hidden_cosine, hint, relations
from lighten.distillation.loss import dist, dkd
from lighten.distillation.settings import (
    FEATURES,
    LABELS,
    OWN,
    check_label_smoothing,
    check_loss_options,
    check_losses,
    check_soft_labels,
)
from lighten.errors import UserError, did_you_mean
from lighten.schedule import Setting, check_setting, value_at
from lighten.tasks import task_of
from lighten.tasks.task import Task

ANSWERS = ("soft_labels", "dkd", "dist")
"""Losses on a teacher's answers; which of them have a meaning depends on the task."""


@dataclass
class BatchOutputs:
    """What both models made of a batch.

    Attributes:
        student: logits, with gradient.
        labels: as the data loader gives them, where a loss looks at them.
        teacher: logits, where a loss asks for them.
        pairs: by loss, the features of the matched layers, the student's projected where it has to be.
        mask: (batch, length), zero at padding, of texts.
        weights: (batch,), of samples.
        own: the loss that the student returned, where one asks for it.
    """

    student: Tensor
    labels: Tensor | None
    teacher: Tensor | None = None
    pairs: Mapping[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    mask: Tensor | None = None
    weights: Tensor | None = None
    own: Tensor | None = None


@dataclass(frozen=True)
class CrossRank:
    """What the losses of a batch need of the other ranks, whose share of it they do not see.

    Attributes:
        gather: all ranks' rows in one tensor, such that gradients flow back to each.
        mean: the mean of a number over the ranks.
    """

    gather: Callable[[Tensor], Tensor] = lambda x: x
    mean: Callable[[Tensor], Tensor] = lambda x: x


class WeightedLosses:
    """Weighted losses; a pure function of batch and progress.

    Args:
        weights: by name, numbers or schedules.
        temperature: a number or a schedule.
        task: what is answered: a name, or a task.
        label_smoothing: of the cross-entropy, in [0, 1).
        options: keywords of losses by name, such as ``{"dkd": {"beta": 2.0}}``.

    Raises:
        UserError: for a ``label_smoothing`` out of its range, or as :func:`check_options`.
    """

    def __init__(
        self,
        weights: Mapping[str, Setting],
        temperature: Setting,
        *,
        task: str | Task = "classification",
        label_smoothing: float = 0.0,
        options: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        check_label_smoothing(label_smoothing)
        self.weights = dict(weights)
        self.temperature = temperature
        self.task = task_of(task)
        self.label_smoothing = label_smoothing
        self.options = check_options(options or {}, self.weights)

    def settings(self) -> dict[str, Any]:
        """Return what was chosen, as plain Python, by the names that ``DistillationModule`` has for it."""
        return {
            "temperature": plain(self.temperature),
            "losses": {name: plain(setting) for name, setting in self.weights.items()},
            "loss_options": self.options,
            "task": self.task.settings() if len(self.task.settings()) > 1 else self.task.name,
            "label_smoothing": self.label_smoothing,
        }

    @property
    def compared(self) -> list[str]:
        """The losses that compare layers."""
        return [name for name in self.weights if name in FEATURES]

    def check_weighted(self) -> None:
        """Raise ``UserError`` if a loss cannot weigh its samples."""
        for name in self.weights:
            if name in ("dist", OWN) or name in FEATURES:
                raise UserError(f"batch has weights of samples, which {name!r} does not take; leave out one of both")

    @property
    def uses_logits(self) -> bool:
        """Whether a loss looks at the student's logits at all times."""
        return any(name not in FEATURES and not isinstance(w, Mapping) for name, w in self.weights.items())

    @property
    def asks_teacher(self) -> bool:
        """Whether a loss needs the teacher's logits."""
        return any(name in ANSWERS for name in self.weights)

    @property
    def needs_labels(self) -> bool:
        """Whether a loss looks at labels."""
        return bool({"dkd", OWN, self.task.label_loss} & set(self.weights))

    @property
    def asks_own(self) -> bool:
        """Whether the student is asked for a loss of its own."""
        return OWN in self.weights

    def __call__(self, batch: BatchOutputs, progress: float, ranks: CrossRank) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value of every loss whose weight is not zero now."""
        weights = {name: value_at(setting, progress) for name, setting in self.weights.items()}
        temperature = value_at(self.temperature, progress)
        return {
            name: (weight, self._value(name, batch, temperature, ranks)) for name, weight in weights.items() if weight
        }

    def _value(self, name: str, batch: BatchOutputs, temperature: float, ranks: CrossRank) -> Tensor:
        options = self.options.get(name, {})
        if name in FEATURES:
            return self._feature_loss(name, batch, ranks)
        if name == OWN:
            return _there(batch.own)
        if name == self.task.label_loss:
            labels = _there(batch.labels)
            there = self.task.counted(labels)
            count = None if there is None or labels.ndim < 2 else _count(there, ranks)
            smoothing = self.label_smoothing
            return self.task.loss(batch.student, labels, smoothing=smoothing, count=count, weights=batch.weights)
        teacher = _there(batch.teacher)
        if name == "dkd":
            return dkd(batch.student, teacher, _there(batch.labels), temperature, weights=batch.weights, **options)
        if name == "dist":
            return dist(ranks.gather(batch.student), ranks.gather(teacher), temperature, **options)
        mask = batch.mask if self.task.per_token else None
        count = None if mask is None else _count(mask, ranks)
        return self.task.soft_loss(batch.student, teacher, temperature, mask=mask, count=count, weights=batch.weights)

    def _feature_loss(self, name: str, batch: BatchOutputs, ranks: CrossRank) -> Tensor:
        values = []
        for ours, theirs in batch.pairs[name]:
            mask = batch.mask if ours.ndim == 3 else None
            if name == "attention_transfer":
                values.append(attention_transfer(ours, theirs, mask=mask))
                continue
            count = None if mask is None else _count(mask, ranks)
            if name == "relations":
                heads = int(self.options.get(name, {}).get("heads", 12))
                values.append(relations(ours, theirs, heads=heads, mask=mask, count=count))
            else:
                loss = hint if name == "hint" else hidden_cosine
                values.append(loss(ours, theirs, mask=mask, count=count))
        return torch.stack(values).mean()


def check_terms(
    losses: Mapping[str, Setting] | None,
    soft_weight: float,
    temperature: Setting,
    *,
    teacher: bool,
    task: str | Task = "classification",
) -> dict[str, Setting]:
    """Return the weight of every loss that takes part.

    Args:
        losses: weights by name; by default ``soft_labels`` gets ``soft_weight``, the labels' loss the rest.
        soft_weight: in [0, 1].
        temperature: above zero throughout.
        teacher: whether there is one; without, all weight lies on the labels.
        task: what is answered: a name, or a task.

    Raises:
        UserError: for an unknown name or task, a negative weight, no weight at all, or a loss that needs a teacher
            without one.
    """
    check_soft_labels(temperature, soft_weight)
    task = task_of(task)
    hard = task.label_loss
    if losses is None:
        losses = {"soft_labels": soft_weight, hard: 1.0 - soft_weight} if teacher else {hard: 1.0}
    check_losses(losses)
    weights = {name: setting for name, setting in losses.items() if max(check_setting(name, setting)) > 0}
    for name in weights:
        if name not in LABELS and not teacher:
            raise UserError(f"losses has {name!r} and there is no teacher; give one, or use {hard} alone")
        if (name in LABELS and name not in (hard, OWN)) or (name in ANSWERS and name not in task.taught_by):
            known = " or ".join((hard, *task.taught_by))
            raise UserError(f"losses has {name!r}, which task={task.name!r} has no use for; expected {known}")
    return weights


def check_options(
    options: Mapping[str, Mapping[str, float]], weights: Mapping[str, Setting]
) -> dict[str, dict[str, float]]:
    """Return the keywords of losses.

    Raises:
        UserError: if a loss takes no part or has no such keyword, or a value is no number above or equal to zero.
    """
    for name in options if isinstance(options, Mapping) else ():
        if name not in weights:
            raise UserError(f"loss_options has {name!r}, which takes no part; {did_you_mean(name, weights)}")
    check_loss_options(options)
    return {name: dict(given) for name, given in options.items()}


def plain(setting: Any) -> Any:
    """Return a setting as plain Python: mappings become a ``dict``."""
    return dict(setting) if isinstance(setting, Mapping) else setting


def _count(mask: Tensor, ranks: CrossRank) -> Tensor:
    return ranks.mean(mask.bool().sum().float())


def _there(given: Tensor | None) -> Tensor:
    assert given is not None
    return given
