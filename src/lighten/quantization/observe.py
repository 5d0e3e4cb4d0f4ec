"""Observers of activations, and the rules by which ranges follow what they see."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lighten.errors import UserError
from lighten.quantization.fake_quant import Watch, kernels_for
from lighten.quantization.histogram import (
    Histogram,
    entropy,
    histogram,
    least_squares,
    merge,
    percentile,
    reduce_histograms,
)
from lighten.quantization.settings import RANGES
from lighten.utils.checks import check_one_of

Follow = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(low, high, new_low, new_high) -> (low, high)``, each of shape (locations,); NaN where nothing was seen yet."""

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


class Observer:
    """What was seen of a model's activations since the last update of their ranges, on this rank.

    Args:
        names: of the locations, in order of use.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.forget()

    def forget(self) -> None:
        """Drop all that was seen."""
        self._seen: dict[int, Tensor] = {}
        self._rows: Tensor | None = None
        self._histograms: dict[int, Histogram] = {}
        self._gradient: Tensor | None = None

    def observe(self, index: int, x: Tensor, *, relu: bool, with_histogram: bool) -> None:
        """Remember the extremes of ``x``, or of its ReLU, at location ``index``; its histogram where asked."""
        x = x.detach()
        if not x.numel():
            return
        low, high = x.amin().float(), x.amax().float()  # on CPUs seven times as fast together as torch.aminmax
        if relu:
            low, high = low.clamp_min(0), high.clamp_min(0)
        seen = torch.stack([-low, high])
        self._seen[index] = torch.maximum(seen, self._seen[index]) if index in self._seen else seen
        if with_histogram:
            new = histogram(x.relu() if relu else x)
            self._histograms[index] = merge(self._histograms[index], new) if index in self._histograms else new

    def watch(self, index: int, x: Tensor, *, relu: bool) -> Watch | None:
        """Return how the kernel that will round ``x`` can observe its extremes, or ``None`` where there is no such."""
        if not x.numel() or kernels_for(x) is None:
            return None
        if self._rows is None:
            self._rows = torch.full((len(self.names), 2), -torch.inf, device=x.device)
        if index not in self._seen:
            self._seen[index] = self._rows[index]
        return Watch(self._seen[index], relu)

    def gradient_of(self, index: int, like: Tensor) -> Tensor:
        """Return the scalar in which the gradient by the step size at ``index`` is summed; ``like``: one of all."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(like)
        return self._gradient[index]

    def reduced_extremes(self, untrained: Collection[str], when: str, device: torch.device) -> Tensor:
        """Return what was seen, over all ranks, (locations, 3) in float32, and forget it.

        That is the negative of the smallest value and the largest, ``-inf`` where nothing was, and 0 where a rank had
        skipped no location before, else -1.

        Args:
            untrained: locations that training does not reach, so that none of their steps counts as skipped.
            when: named where something was not finite.
            device: of the result.

        Raises:
            UserError: if activations were not finite.
        """
        skipped, rows = 0.0, []
        nothing = torch.full((2,), -torch.inf, device=device)
        for i, name in enumerate(self.names):
            skipped = skipped if i in self._seen or name in untrained else -1.0
            rows.append(torch.cat([self._seen.get(i, nothing), nothing.new_full((1,), skipped)]))
        extremes = torch.stack(rows)
        self._seen, self._rows = {}, None
        finite = extremes.isfinite() | (extremes == -torch.inf)
        extremes = torch.where(finite, extremes, torch.inf)
        if _is_parallel():
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        for name, (low, high, _) in zip(self.names, extremes.tolist(), strict=True):
            if max(low, high) == math.inf:
                raise UserError(f"quantize: activations at {name!r} are not finite{when}; lower the learning rate")
        return extremes

    def reduced_histograms(self, low: Tensor, high: Tensor) -> Sequence[Histogram | None]:
        """Return the histograms, over all ranks, whose extremes are ``low`` and ``high``, and forget them."""
        histograms, self._histograms = self._histograms, {}
        return reduce_histograms([histograms.get(i) for i in range(len(self.names))], low, high)

    def reduced_gradient(self, like: Tensor) -> Tensor:
        """Return the gradient by the step sizes, summed over all ranks, and forget it."""
        gradient = torch.zeros_like(like) if self._gradient is None else self._gradient
        self._gradient = None
        if _is_parallel():
            dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        return gradient


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized()
