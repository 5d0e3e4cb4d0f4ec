"""The ranges of activations: how they follow what passes by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.quantization.histogram import Histogram, entropy, least_squares, percentile
from lighten.quantization.settings import RANGES
from lighten.utils.checks import check_one_of

Follow = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(low, high, new_low, new_high) -> (low, high)``, each of shape (places,); NaN where nothing was seen yet."""

MOMENTUM = 0.05
"""Weight of the newest batch in a moving average."""

EVERY = 10
"""In training, histograms are made of every so many batches."""


def moving_average(low: Tensor, high: Tensor, new_low: Tensor, new_high: Tensor) -> tuple[Tensor, Tensor]:
    """Let the range move by 5 % of the way to each batch's; the first batch sets it (Jacob et al. 2018, section 3)."""
    return _towards(low, new_low, MOMENTUM), _towards(high, new_high, MOMENTUM)


def min_max(low: Tensor, high: Tensor, new_low: Tensor, new_high: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the smallest and the largest value ever seen."""
    return torch.fmin(low, new_low), torch.fmax(high, new_high)


def _every_few(low: Tensor, high: Tensor, new_low: Tensor, new_high: Tensor) -> tuple[Tensor, Tensor]:
    weight = 1 - (1 - MOMENTUM) ** EVERY  # as fast, by batches, as the moving average
    return _towards(low, new_low, weight), _towards(high, new_high, weight)


def _towards(old: Tensor, new: Tensor, weight: float) -> Tensor:
    return torch.where(old.isnan(), new, torch.lerp(old, new, weight))


@dataclass(frozen=True)
class Rule:
    """How ranges are found.

    Attributes:
        follow: what a new range does to the one before.
        estimate: the range of a histogram; without it the extremes are the range.
        every: in training, how often batches are looked at.
        learned: from the second batch of training on, the loss's gradient moves the step size.
    """

    follow: Follow
    estimate: Callable[[Histogram], tuple[float, float]] | None = None
    every: int = 1
    learned: bool = False


RULES: dict[str, Rule] = {
    "moving_average": Rule(moving_average),
    "min_max": Rule(min_max),
    "percentile": Rule(_every_few, percentile, EVERY),
    "mse": Rule(_every_few, least_squares, EVERY),
    "entropy": Rule(_every_few, entropy, EVERY),
    "lsq": Rule(_every_few, least_squares, learned=True),
}
"""What ``ranges=`` names: extremes, averaged or kept; a histogram's quantiles (99.99 %), least squared error, or least
divergence; a step size that is learned, beginning with the least squared error."""


def rule_of(name: str) -> Rule:
    """Return the rule that ``ranges=name`` means.

    Raises:
        UserError: on an unknown name.
    """
    check_one_of("ranges", name, RANGES)
    return RULES[name]
