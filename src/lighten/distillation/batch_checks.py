"""What a task's labels and samples' weights have to look like, said before a loss fails on them."""

from typing import Any

import torch
from torch import Tensor

from lighten.distillation.loss import IGNORED
from lighten.errors import UserError

_DIMS = {"classification": (1,), "regression": (1, 2), "multilabel": (2,), "masked_lm": (2,)}
_EXPECTED = {"classification": "(batch,) of class indices", "masked_lm": "(batch, length) of tokens"}


def check_labels(labels: Any, task: str) -> Tensor:
    """Return the labels.

    Raises:
        UserError: if they are no tensor, or have another shape or dtype than the task's.
    """
    if not isinstance(labels, Tensor):
        raise UserError(f"labels are of type {type(labels).__name__}, expected a tensor; convert them in the data set")
    expected = _EXPECTED.get(task, "(batch, outputs)")
    if labels.ndim not in _DIMS[task]:
        raise UserError(f"labels have shape {tuple(labels.shape)}, expected {expected}")
    if task in _EXPECTED and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise UserError(f"labels are {labels.dtype}, expected {expected}; convert them with labels.long()")
    return labels


def check_range(logits: Tensor, labels: Tensor, task: str, *, look: bool = True) -> None:
    """Raise ``UserError`` unless labels and logits fit, and labels are in the task's range.

    Args:
        logits: of the student.
        labels: as ``check_labels`` returns them.
        task: one of ``terms.TASKS``.
        look: whether to look at the values as well, for which the host waits.
    """
    dims = 3 if task == "masked_lm" else 2
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
