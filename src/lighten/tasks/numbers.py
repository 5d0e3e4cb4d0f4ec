"""What tasks share whose answers are numbers: standardised by a mean and a deviation, and read in their own unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lighten.errors import UserError
from lighten.tasks.losses import mean_squared_error
from lighten.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class NumberTask(Task):
    """Labels and answers are floating-point numbers of the same shape, ``(value - mean) / std`` in each channel.

    Attributes:
        mean: of each target or channel; empty for numbers that are not standardised.
        std: likewise, above zero.

    Raises:
        UserError: if they are not as many, or a deviation is not above zero.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    label_loss: ClassVar[str] = "mean_squared_error"
    fit_text: ClassVar[str] = "one label for each output"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if len(self.mean) != len(self.std):
            raise UserError(f"{self.name}: {len(self.mean)} values of mean, {len(self.std)} of std; give one a target")
        for value in self.std:
            if not 0 < value < float("inf"):
                raise UserError(f"{self.name}: std={value}, expected a number above zero; a target must vary")

    def misunderstands(self, other: Task) -> str | None:
        """Return why answers to ``other`` mean something else here: also where they are standardised in another way."""
        problem = super().misunderstands(other)
        if problem is not None:
            return problem
        pairs = [(self.mean, getattr(other, "mean", ())), (self.std, getattr(other, "std", ()))]
        if all(len(a) == len(b) and all(map(math.isclose, a, b)) for a, b in pairs):
            return None
        theirs = f"mean {list(pairs[0][1])} and deviation {list(pairs[1][1])}"
        return f"answers in numbers standardised by {theirs}, the data by {list(self.mean)} and {list(self.std)}"

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...] | None:
        """Return (samples, targets)."""
        return samples, outputs

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor:
        """Return which labels are not finite."""
        return ~labels.float().isfinite()

    def range_text(self, outputs: int) -> str:
        """Return what labels are."""
        return "finite numbers; fix the labels"

    def range_problem(self, labels: Tensor, outputs: int) -> str | None:
        """Return ``None``: a label that is not finite shows in the loss, where a fit has its own rules for it."""
        return None

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the mean squared error."""
        return mean_squared_error(answers, labels.reshape(answers.shape), weights=weights)

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the mean squared difference to the teacher's answers; numbers have no temperature."""
        return mean_squared_error(answers, teacher.reshape(answers.shape), weights=weights)

    def rows(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return answers and labels of the answers' shape."""
        return answers.float(), labels.float().reshape(answers.shape)

    def restored(self, values: Tensor) -> Tensor:
        """Return standardised values (batch, channels, …) in their own unit."""
        if not self.mean:
            return values
        shape = [1, -1, *[1] * (values.ndim - 2)]
        mean, std = (torch.tensor(v, dtype=values.dtype, device=values.device) for v in (self.mean, self.std))
        return values * std.view(shape) + mean.view(shape)

    def _check_channels(self, outputs: int) -> None:
        if self.mean and len(self.mean) != outputs:
            raise UserError(
                f"{self.name}: mean and std have {len(self.mean)} values, there are {outputs} outputs; give one each"
            )


def as_floats(values: Tensor) -> list[Any]:
    """Return numbers of a row, one alone as itself."""
    found = values.tolist()
    return found[0] if len(found) == 1 else found
