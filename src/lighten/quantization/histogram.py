"""Mergeable histograms of activations, and the ranges that they suggest.

A bin's width is a power of two, so that coarsening a histogram is adding neighbours up: batches in any order, or spread
over any number of ranks, give the same counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lighten.quantization.fake_quant import LEVELS, quantization_parameters

BINS = 2**14
"""Bins of a histogram, half of them for negative numbers."""

_FINEST = -60
_CANDIDATES = 160
_TRIED = 48


@dataclass(frozen=True)
class Histogram:
    """How often which values were seen at one location.

    Attributes:
        counts: (``BINS``,), float64; bin k covers ``[k - BINS / 2, k + 1 - BINS / 2)`` times the width.
        exponent: the width is two to this power.
        zeros: how many values were exactly zero.
        low: the smallest value seen.
        high: the largest.
    """

    counts: Tensor
    exponent: int
    zeros: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent

    @property
    def edges(self) -> Tensor:
        """Lower edges of the bins, (``BINS``,), float64."""
        return (torch.arange(BINS, dtype=torch.float64) - BINS // 2) * self.width


def histogram(x: Tensor) -> Histogram:
    """Count the values of ``x`` (any shape, not empty, in floating point).

    Where a value is not finite, nothing is counted and the extremes say so: the caller knows location and ranks.
    """
    x = x.detach().flatten().float()
    low, high = float(x.amin()), float(x.amax())
    largest = max(-low, high)
    if not math.isfinite(high - low):
        return Histogram(torch.zeros(BINS, dtype=torch.float64), _FINEST, 0.0, low, high)
    exponent = max(_FINEST, math.frexp(largest)[1] - int(math.log2(BINS // 2))) if largest else _FINEST
    fine = x.double() if exponent > 0 else x  # float32 would round the smallest negative numbers to zero
    counts = torch.bincount((fine * 2.0**-exponent).floor_().add_(BINS // 2).int(), minlength=BINS)
    return Histogram(counts.double().cpu(), exponent, float((x == 0).sum()), low, high)


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of the values of both."""
    exponent = max(a.exponent, b.exponent)
    a, b = coarsen(a, exponent), coarsen(b, exponent)
    low, high = float(np.minimum(a.low, b.low)), float(np.maximum(a.high, b.high))  # NaN stays
    return Histogram(a.counts + b.counts, exponent, a.zeros + b.zeros, low, high)


def coarsen(h: Histogram, exponent: int) -> Histogram:
    """Return ``h`` with bins of width ``2 ** exponent``, not narrower than its own."""
    assert exponent >= h.exponent, (exponent, h.exponent)
    counts = h.counts
    for _ in range(min(exponent - h.exponent, BINS.bit_length())):
        pairs = counts.view(-1, 2).sum(1)
        counts = torch.zeros_like(counts)
        counts[BINS // 4 : BINS - BINS // 4] = pairs
    return Histogram(counts, exponent, h.zeros, h.low, h.high)


def reduce_histograms(histograms: Sequence[Histogram | None], low: Tensor, high: Tensor) -> list[Histogram | None]:
    """Return the histograms of all ranks together, location by location.

    Args:
        histograms: of this rank; ``None`` where nothing was seen.
        low: the smallest value of all ranks, (locations,).
        high: the largest.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(histograms)
    device = low.device
    exponents = torch.tensor([h.exponent if h else _FINEST for h in histograms], device=device)
    dist.all_reduce(exponents, op=dist.ReduceOp.MAX)
    nothing = torch.zeros(BINS + 1, dtype=torch.float64)
    rows = [nothing if h is None else _row(coarsen(h, int(e))) for h, e in zip(histograms, exponents, strict=True)]
    counts = torch.stack(rows).to(device)
    dist.all_reduce(counts, op=dist.ReduceOp.SUM)
    locations = zip(counts.cpu(), exponents.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Histogram(row[:-1], e, float(row[-1]), a, b) if row.any() else None for row, e, a, b in locations]


def percentile(h: Histogram, share: float = 0.9999) -> tuple[float, float]:
    """Return the range that holds ``share`` of the values; what is left out is cut off in equal parts at both ends.

    Of values that are never negative, all of it is cut off at the top. Linear inside a bin.
    """
    total, left_out = float(h.counts.sum()), 1 - share
    reached = h.counts.cumsum(0)
    if h.low >= 0:
        return h.low, min(h.high, _quantile(h, reached, total * (1 - left_out)))
    low, high = (_quantile(h, reached, total * q) for q in (left_out / 2, 1 - left_out / 2))
    return max(h.low, min(low, h.high)), min(h.high, max(high, h.low))


def least_squares(h: Histogram) -> tuple[float, float]:
    """Return the range with the least expected squared error of quantize and dequantize.

    ``E = sum over x > high of (x - high)^2 + sum over x < low of (x - low)^2 + inside * scale^2 / 12`` (Sung et al.
    2015, "Resiliency of Deep Neural Networks under Quantization"; the last term is the variance of uniform rounding,
    which zeros do not have), over ranges from the extremes inwards; the best of them are then tried on the bins.
    """
    edges, width = h.edges, h.width
    middles, total = edges + width / 2, float(h.counts.sum())
    powers = torch.stack([h.counts, h.counts * middles, h.counts * middles**2])
    below = torch.cat([torch.zeros(3, 1, dtype=torch.float64), powers.cumsum(1)], dim=1)

    def moments(bounds: Tensor) -> Tensor:  # of what lies below each bound
        return below[:, torch.floor(bounds / width).long().add(BINS // 2).clamp(0, BINS)]

    lows, highs = _inwards(min(h.low, 0.0)), _inwards(max(h.high, 0.0))
    n, first, second = moments(lows)
    cut_low = second - 2 * lows * first + lows**2 * n
    inside = -n
    n, first, second = below[:, -1:] - moments(highs)
    cut_high = second - 2 * highs * first + highs**2 * n
    inside = (total - h.zeros + inside).view(-1, 1) - n
    scale = (highs - lows.view(-1, 1)) / LEVELS
    error = cut_low.clamp_min(0).view(-1, 1) + cut_high.clamp_min(0) + inside.clamp_min(0) * scale**2 / 12
    best = error.flatten().argsort()[:_TRIED]
    pairs = list(zip(lows[best // len(highs)].tolist(), highs[best % len(highs)].tolist(), strict=True))
    filled = h.counts > 0
    counts, middles = h.counts[filled], middles[filled]
    counts = torch.where(middles == width / 2, counts - h.zeros, counts)
    return min(pairs, key=lambda pair: _rounding_error(counts, middles, *pair))


def entropy(h: Histogram) -> tuple[float, float]:
    """Return the range that loses the least information, by Kullback-Leibler divergence.

    As Migacz, "8-bit Inference with TensorRT" (GTC 2017): for each bound, the values beyond it are added to the last
    bin (P); P without them is spread evenly over the bins, other than empty ones, of each quantization level (Q); the
    bound with the least ``sum of P log(P / Q)`` is taken. Values that are never negative have a bound at the top and
    255 levels; others one bound of their magnitudes, and 128 levels. On 2048 bins a side, as in the source: with
    finer ones, empty bins decide. At least half of the values stay inside: where nothing is near zero, a bound on the
    first bin that is not empty would make P and Q one and the same bin, without divergence.
    """
    h = coarsen(h, h.exponent + int(math.log2(BINS // 4096)))
    upper, lower = h.counts[BINS // 2 :], h.counts[: BINS // 2].flip(0)
    levels = LEVELS if h.low >= 0 else 128
    counts = upper if h.low >= 0 else upper + lower
    counts = counts.clone()
    counts[0] = max(float(counts[0]) - h.zeros, 0.0)  # exact in any range
    last = int(counts.nonzero().max()) + 1 if bool(counts.any()) else 0
    half = int(torch.searchsorted(counts.cumsum(0), float(counts.sum()) / 2)) + 1
    first = max(levels, half)
    if last <= first:
        return h.low, h.high
    bounds = sorted({round(first * (last / first) ** (k / (_CANDIDATES - 1))) for k in range(_CANDIDATES)})
    best = min(bounds, key=lambda bound: (_divergence(counts, bound, levels), bound))
    bound = best * h.width
    return max(h.low, -bound), min(h.high, bound)


def _rounding_error(counts: Tensor, middles: Tensor, low: float, high: float) -> float:
    """Return the squared error that quantize and dequantize make of ``middles`` (bins,), seen ``counts`` times each."""
    scale, zero_point = quantization_parameters(low, high)
    codes = (middles / scale).round_().clamp_(-zero_point, LEVELS - zero_point)
    return float(codes.mul_(scale).sub_(middles).square_().dot(counts))


def _divergence(counts: Tensor, bound: int, levels: int) -> float:
    inside = counts[:bound]
    p = inside.clone()
    p[-1] += counts[bound:].sum()
    level = torch.arange(bound) * levels // bound
    filled = (inside > 0).double()
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    bins = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled)
    q = (mass / bins.clamp_min(1))[level] * filled
    if float(q.sum()) == 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    here = p > 0
    return float((p[here] * (p[here] / q[here].clamp_min(1e-12)).log()).sum())


def _quantile(h: Histogram, reached: Tensor, rank: float) -> float:
    k = min(int(torch.searchsorted(reached, rank)), BINS - 1)
    count = float(h.counts[k])
    part = 1 - (float(reached[k]) - rank) / count if count else 1.0
    return float(h.edges[k]) + part * h.width


def _inwards(bound: float) -> Tensor:
    """Return bounds from ``bound`` down to a 256th of it, the closer together the smaller they are."""
    if bound == 0:
        return torch.zeros(1, dtype=torch.float64)
    return bound * torch.logspace(0, -8, _CANDIDATES, base=2, dtype=torch.float64)


def _row(h: Histogram) -> Tensor:
    return torch.cat([h.counts, torch.tensor([h.zeros], dtype=torch.float64)])
