"""Confirmation: what a compressed network loses at most, from its answers and the original's to the same samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.errors import UserError
from lighten.search.needs import percent
from lighten.search.resample import resampled
from lighten.tasks.task import Task

DRAWS = 2000
_AT_ONCE = 100
"""Draws whose weights are in memory together."""
_GROUPS = 200
"""Parts that a jackknife leaves out, one after the other, at most."""


@dataclass(frozen=True)
class Confirmation:
    """A measured drop with its bound.

    Attributes:
        drop: measured, as the task counts it.
        bound: with ``confidence``, the drop on the whole population is not above it.
        samples: on which it was measured.
        confidence: of the bound, one-sided.
        method: how the bound was found, for a report.
        samples_needed: about how many samples it takes until the bound of such a drop is within ``max_drop``; ``None``
            where these were enough, or where the drop itself is above it and no number would do.
    """

    drop: float
    bound: float
    samples: int
    confidence: float
    method: str
    samples_needed: int | None = None


def confirm_drop(
    task: Task, labels: Sequence[Any], original: Sequence[Any], compressed: Sequence[Any], *,
    confidence: float = 0.95, seed: int = 0, max_drop: float | None = None,
) -> Confirmation:  # fmt: skip
    """Return what is lost, and with one-sided ``confidence`` at most.

    Of an accuracy with one answer a sample it is the score interval of paired proportions (Tango 1998, "Equivalence
    test and confidence interval for the difference in proportions for the paired-sample design", equations 7 and 8);
    of every other metric the bias-corrected and accelerated bootstrap (Efron 1987, "Better bootstrap confidence
    intervals") of samples, both networks on the same draws. Where no sample differs, it is the share of samples that
    may differ all the same: 1 - (1 - confidence)^(1 / samples).

    Args:
        task: what is answered.
        labels: a tensor or array a batch.
        original: its answers, a tensor or array a batch.
        compressed: likewise, to the same batches.
        confidence: above 0.5 and below 1.
        seed: of the bootstrap.
        max_drop: what ``samples_needed`` is asked for.

    Raises:
        UserError: if there are no samples, or the batches do not fit.
    """
    batches = [
        (task.check_labels(torch.as_tensor(label)), torch.as_tensor(one), torch.as_tensor(other))
        for label, one, other in _zipped(labels, original, compressed)
    ]
    samples = sum(len(label) for label, _, _ in batches)
    if not samples:
        raise UserError("no samples to confirm the drop by, expected some")
    alpha = 1 - confidence
    least = 1 - alpha ** (1 / samples)  # nothing was seen of what happens this seldom
    if task.ranks and task.metric == "accuracy" and all(one.ndim == 2 for _, one, _ in batches):
        lost, won, counted = _discordant(task, batches)
        bound = paired_bound(lost, won, counted, confidence)
        drop, samples, method = (lost - won) / counted, counted, "score interval of paired proportions"

        def shrunk(factor: float) -> float:
            return paired_bound(lost * factor, won * factor, counted * factor, confidence)

    else:
        drop, bound, same = _bootstrap(task, batches, confidence, seed)
        if same:
            bound, method = least, "no sample differs"
        else:
            method = f"paired bootstrap, {DRAWS} draws"

        def shrunk(factor: float) -> float:
            return least / factor if same else drop + (bound - drop) / math.sqrt(factor)

    needed = None if max_drop is None or bound <= max_drop else _needed(samples, drop, max_drop, shrunk)
    return Confirmation(float(drop), float(bound), samples, confidence, method, needed)


def too_few(samples: int, max_drop: float, confidence: float = 0.95) -> str | None:
    """Return why a need cannot be confirmed even where no answer differs, in a sentence; ``None`` where it can.

    Args:
        samples: to confirm by.
        max_drop: that is asked for.
        confidence: of the bound, one-sided.
    """
    least = 1 - (1 - confidence) ** (1 / samples)
    if least <= max_drop:
        return None
    start = f"{samples} samples to confirm by: the bound of the drop is {percent(least)} even where no answer differs"
    if not max_drop:
        return f"{start}, and above 0 with any number; ask for a drop above 0"
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - max_drop))
    return f"{start}, and {percent(max_drop)} is asked; about {needed} samples would do"


def confirm_logged(
    drop: Callable[[float, float], float], sizes: Sequence[int], original: Sequence[float],
    compressed: Sequence[float], *, confidence: float = 0.95, seed: int = 0, max_drop: float | None = None,
) -> Confirmation:  # fmt: skip
    """Return the drop of a metric of somebody's own, of which only the value of each batch is known.

    The metric is the mean over batches, by their samples; the bound is the bootstrap's, of batches.

    Args:
        drop: from the original's value and the compressed network's to what is lost.
        sizes: samples of each batch.
        original: its value of each batch.
        compressed: likewise, of the same batches.
        confidence: as :func:`confirm_drop` takes it.
        seed: likewise.
        max_drop: likewise.
    """
    values, weight = np.array([original, compressed], float), np.array(sizes, float)
    if not weight.sum():
        raise UserError("no samples to confirm the drop by, expected some")

    def drops(times: np.ndarray) -> np.ndarray:
        means = (times * weight) @ values.T / (times @ weight)[:, None]
        return np.array([drop(one, other) for one, other in means.tolist()])

    found, samples = float(drops(np.ones((1, len(weight))))[0]), int(weight.sum())
    bound = bootstrap_bound(drops, len(weight), confidence, seed)
    if np.array_equal(*values):
        bound = 1 - (1 - confidence) ** (1 / samples)

    def shrunk(factor: float) -> float:
        return found + (bound - found) / math.sqrt(factor)

    needed = None if max_drop is None or bound <= max_drop else _needed(samples, found, max_drop, shrunk)
    return Confirmation(found, bound, samples, confidence, f"paired bootstrap of {len(weight)} batches", needed)


def paired_bound(lost: float, won: float, samples: float, confidence: float = 0.95) -> float:
    """Return the upper bound of (lost - won) / samples, as proportions of a population.

    Args:
        lost: samples that the original alone answers rightly.
        won: samples that the compressed network alone answers rightly.
        samples: all of them.
        confidence: one-sided.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (lost - won) / samples, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _statistic(lost, won, samples, middle) > -z else (low, middle)
    if lost + won == 0:
        high = max(high, 1 - (1 - confidence) ** (1 / samples))
    return high


def safe_drop(found: Confirmation, samples: int) -> float:
    """Return the drop that a choice reckons with: its bound on ``samples`` others is as likely below as not above.

    What was measured may be too good by its own deviation and that of the other samples together, and their bound lies
    above what is measured there by their deviation again.

    Args:
        found: on the split that is chosen on.
        samples: of the split that confirms.
    """
    own = max(0.0, found.bound - found.drop)
    other = own * math.sqrt(found.samples / samples)
    return found.drop + math.hypot(own, other) + other


def _statistic(lost: float, won: float, samples: float, difference: float) -> float:
    """Return Tango's score of a difference: what was measured less it, in deviations that it would have."""
    a = 2 * samples
    b = (2 * samples - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = samples * (2 * share + difference * (1 - difference))
    return (lost - won - samples * difference) / math.sqrt(variance) if variance > 0 else 0.0


def _zipped(labels: Sequence[Any], *answers: Sequence[Any]) -> list[tuple[Any, ...]]:
    counts = [[len(batch) for batch in batches] for batches in (labels, *answers)]
    if any(count != counts[0] for count in counts):
        raise UserError(
            f"answers of {sum(counts[1])} and {sum(counts[2])} samples, labels of {sum(counts[0])}; expected as many"
        )
    return list(zip(labels, *answers, strict=True))


def _discordant(task: Task, batches: Sequence[tuple[Tensor, ...]]) -> tuple[int, int, int]:
    """Return how many samples the original alone answers rightly, the compressed network alone, and all that count."""
    lost = won = counted = 0
    for labels, one, other in batches:
        first, kept = task.rows(one, labels)
        second, _ = task.rows(other, labels)
        before, after = first.argmax(-1) == kept, second.argmax(-1) == kept
        lost, won = lost + int((before & ~after).sum()), won + int((after & ~before).sum())
        counted += len(kept)
    if not counted:
        raise UserError("no label of the samples to confirm the drop by counts, expected some")
    return lost, won, counted


def _needed(samples: int, drop: float, max_drop: float, shrunk: Callable[[float], float]) -> int | None:
    """Return about how many samples would bring the bound within ``max_drop``."""
    if drop >= max_drop:
        return None
    low, high = 1.0, 2.0
    while shrunk(high) > max_drop:
        low, high = high, 2 * high
        if high > 1e9:
            return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if shrunk(middle) > max_drop else (low, middle)
    return math.ceil(samples * high)


def _bootstrap(
    task: Task, batches: Sequence[tuple[Tensor, ...]], confidence: float, seed: int
) -> tuple[float, float, bool]:
    """Return the drop, its bound, and whether no sample differs."""
    first, second = (resampled(task, [(labels, answers[which]) for labels, *answers in batches]) for which in (0, 1))

    def drops(weights: np.ndarray) -> np.ndarray:
        pairs = zip(first.values(weights), second.values(weights), strict=True)
        return np.array([task.drop({task.metric: one}, {task.metric: other}) for one, other in pairs])

    samples = sum(len(labels) for labels, *_ in batches)
    drop = float(drops(np.ones((1, samples)))[0])
    if np.array_equal(first.rows, second.rows):
        return drop, drop, True
    return drop, bootstrap_bound(drops, samples, confidence, seed), False


def bootstrap_bound(drops: Callable[[np.ndarray], np.ndarray], samples: int, confidence: float, seed: int) -> float:
    """Return the upper bound of a drop.

    Args:
        drops: returns the drop for each row of weights (rows, samples).
        samples: that are drawn from.
        confidence: one-sided.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = [drops(_weights(generator, samples)) for _ in range(DRAWS // _AT_ONCE)]
    group = np.arange(samples) % min(samples, _GROUPS)
    without = drops((group != np.arange(group.max() + 1)[:, None]).astype(float))
    return accelerated_bound(float(drops(np.ones((1, samples)))[0]), np.concatenate(drawn), without, confidence)


def _weights(generator: np.random.Generator, samples: int) -> np.ndarray:
    """Return how often each sample is drawn, float64 (draws, samples)."""
    places = generator.integers(samples, size=(_AT_ONCE, samples)) + samples * np.arange(_AT_ONCE)[:, None]
    return np.bincount(places.ravel(), minlength=_AT_ONCE * samples).reshape(_AT_ONCE, samples).astype(float)


def accelerated_bound(value: float, drawn: np.ndarray, without: np.ndarray, confidence: float) -> float:
    """Return the upper bound by bias-corrected and accelerated bootstrap.

    Args:
        value: of all samples.
        drawn: of samples drawn with replacement.
        without: of all but a part of the samples, for each part.
        confidence: one-sided.
    """
    drawn, without = drawn[np.isfinite(drawn)], without[np.isfinite(without)]
    if not len(drawn):
        return math.inf
    normal = NormalDist()
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / len(drawn)
    bias = normal.inv_cdf(min(max(float(below), 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    away = without.mean() - without if len(without) else np.zeros(1)
    spread = float(np.sum(away**2))
    acceleration = float(np.sum(away**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + normal.inv_cdf(confidence)
    level = normal.cdf(bias + shifted / max(1e-6, 1 - acceleration * shifted))
    return max(value, float(np.quantile(drawn, level)))
