"""Checks of batches: labels, samples' weights and logits."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.distillation.loss import IGNORED
from lighten.errors import UserError

LABEL_DIMS = {"classification": (1,), "regression": (1, 2), "multilabel": (2,), "masked_lm": (2,)}
"""Dimensions that the labels of a batch may have, by task."""
_EXPECTED = {"classification": "(batch,) of class indices", "masked_lm": "(batch, length) of tokens"}


def logit_dims(task: str) -> int:
    """Return how many dimensions the logits of a batch have: (batch, length, tokens) or (batch, classes)."""
    return 3 if task == "masked_lm" else 2


def check_labels(labels: Any, task: str) -> Tensor:
    """Return the labels.

    Raises:
        UserError: if they are no tensor, or have another shape or dtype than the task's.
    """
    if not isinstance(labels, Tensor):
        raise UserError(f"labels are of type {type(labels).__name__}, expected a tensor; convert them in the data set")
    expected = _EXPECTED.get(task, "(batch, outputs)")
    if labels.ndim not in LABEL_DIMS[task]:
        raise UserError(f"labels have shape {tuple(labels.shape)}, expected {expected}")
    if task in _EXPECTED and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise UserError(f"labels are {labels.dtype}, expected {expected}; convert them with labels.long()")
    return labels


def check_logits(
    logits: Tensor, labels: Tensor, task: str, *, num_classes: int | None = None, look: bool = True
) -> None:
    """Raise ``UserError`` unless labels and logits fit, and labels are in the task's range.

    Args:
        logits: of the student.
        labels: as ``check_labels`` returns them.
        task: one of ``terms.TASKS``.
        num_classes: of the data, where it is known.
        look: whether to look at the values as well, for which the host waits.
    """
    if num_classes not in (None, logits.shape[-1]):
        raise UserError(f"the student gives {logits.shape[-1]} classes, the data have {num_classes}")
    dims = logit_dims(task)
    if logits.ndim != dims:
        expected = "(batch, length, classes)" if dims == 3 else "(batch, classes)"
        raise UserError(f"the student returns logits of shape {tuple(logits.shape)}, expected {expected}")
    fits = {
        "regression": labels.numel() == logits.numel() and len(labels) == len(logits),
        "multilabel": labels.shape == logits.shape,
    }
    if not fits.get(task, labels.shape == logits.shape[:-1]):
        raise UserError(
            f"labels have shape {tuple(labels.shape)}, the student's logits {tuple(logits.shape)}; expected one label "
            f"for each {'output' if task in fits else 'row of logits'}"
        )
    if not look or task == "regression":
        return
    known = labels[labels != IGNORED] if task != "multilabel" else labels
    if not len(known):
        return
    low, high, classes = known.min().item(), known.max().item(), logits.shape[-1]
    if task == "multilabel":
        if not 0 <= low <= high <= 1:
            raise UserError(f"labels run from {low:g} to {high:g}, expected yes or no, 0 to 1, for each class")
    elif low < 0 or high >= classes:
        raise UserError(
            f"labels run from {low} to {high}, expected 0 to {classes - 1} for {classes} classes; "
            "map them to class indices, or give the model more classes"
        )


def check_weights(weights: Tensor, samples: int, *, look: bool = True) -> None:
    """Raise ``UserError`` unless there is one weight a sample, finite and not below zero (where one may ``look``)."""
    if not isinstance(weights, Tensor) or weights.shape != (samples,):
        found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise UserError(f"weights of samples are {found}, expected a tensor of shape ({samples},)")
    if look and not bool(((weights >= 0) & (weights < float("inf"))).all()):
        raise UserError("weights of samples hold numbers below zero or not finite, expected finite ones from zero on")


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise ``UserError`` unless student and teacher give equal numbers of classes."""
    ours, theirs = student_logits.shape[-1], teacher_logits.shape[-1]
    if ours != theirs:
        raise UserError(f"the teacher gives {theirs} classes, the student {ours}; they must know the same ones")


def check_single_sample(student: nn.Module, samples: int) -> None:
    """Raise ``UserError`` if a batch of one sample is about to reach a batch norm in training mode."""
    if samples == 1 and any(isinstance(m, _BatchNorm) and m.training for m in student.modules()):
        raise _single_sample_error(student)


@contextlib.contextmanager
def single_sample_as_user_error(student: nn.Module) -> Iterator[None]:
    """Raise ``UserError`` where torch refuses a batch norm that has one value to average over."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise _single_sample_error(student) from error
        raise


def _single_sample_error(student: nn.Module) -> UserError:
    return UserError(
        f"a batch of one sample reached {type(student).__name__}, whose batch norm needs two or more to "
        "train; raise batch_size, or set drop_last on the data loader"
    )


def first_non_finite(values: Tensor) -> int | None:
    """Return the number of the first sample of (batch, …) with a value that is not finite; ``None`` without one."""
    bad = ~values[:, None].isfinite().flatten(1).all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def describe_non_finite(logits: Mapping[str, Tensor]) -> str | None:
    """Return whose logits are not finite, and for which sample, as the end of a sentence; ``None`` if all are."""
    for role, values in logits.items():
        sample = first_non_finite(values)
        if sample is not None:
            return f": the {role}'s logits are not finite for sample {sample} of the batch"
    return None
