"""Checks of batches: samples' weights, single samples and answers that are not finite."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lighten.errors import UserError
from lighten.tasks.task import Task


def check_weights(weights: Tensor, samples: int, *, look: bool = True) -> None:
    """Raise ``UserError`` unless there is one weight a sample, finite and not below zero (where one may ``look``)."""
    if not isinstance(weights, Tensor) or weights.shape != (samples,):
        found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise UserError(f"weights of samples are {found}, expected a tensor of shape ({samples},)")
    if look and not bool(((weights >= 0) & (weights < float("inf"))).all()):
        raise UserError("weights of samples hold numbers below zero or not finite, expected finite ones from zero on")


def check_same_outputs(task: Task, student: Tensor, teacher: Tensor) -> None:
    """Raise ``UserError`` unless student and teacher give answers of the task that can be held against each other."""
    if task.answer_dims is not None and student.ndim != task.answer_dims:
        raise UserError(
            f"the student returns {task.answers_are} of shape {tuple(student.shape)}, expected {task.answer_text} of "
            f"task={task.name!r}; give it what the network answers as task, or choose an output by outputs"
        )
    ours, theirs = task.outputs_of(student), task.outputs_of(teacher)
    if ours != theirs:
        raise UserError(
            f"the teacher gives {theirs} {task.outputs_are}, the student {ours}; they must know the same ones"
        )
    if not task.comparable(student, teacher):
        raise UserError(
            f"the teacher's {task.answers_are} have shape {tuple(teacher.shape)}, the student's "
            f"{tuple(student.shape)}; they must answer the same"
        )


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
