"""Predictions of a trial before it is run, from what the look measured, corrected by the trials that were run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

FLOAT_BITS, INT_BITS = 32, 8
GRID = np.linspace(0.0, 0.98, 50)
"""Amounts of pruning that a prediction is made monotone over."""
UNSEEN = 1e-3
"""A drop, or a damage, that is hardly seen: logarithms are of what is above it."""
RECOVERY = -1.0
"""Before anything is measured, training divides the damage by one more than its epochs."""
INT_GAIN = 0.5
"""Of integers' latency relative to floats', where the look has measured floats alone."""


class Settings(Protocol):
    """What predictions read of a trial's settings."""

    @property
    def amount(self) -> float:
        """Share that is pruned."""

    @property
    def quantize(self) -> str:
        """``"none"`` for floats."""

    @property
    def exclude(self) -> Sequence[str]:
        """Layers that stay in float."""

    @property
    def epochs(self) -> float:
        """Of training."""


class LatencyModel:
    """Latency by amount and bits: the look's own measurements, and a correction by what trials took.

    A prediction is interpolated in the logarithm of milliseconds, never rises with the amount, and lies between
    integers and floats where some layers stay in float, by their share of the multiply-adds. The correction is fitted
    to logarithms by least squares towards none: a factor, one more for integers, and one that grows with the amount.

    Args:
        measured: ``{"amount", "bits", "ms"}`` of the look; may be empty.
        macs: multiply-adds of the layers by name, by which ``exclude`` counts.
    """

    def __init__(self, measured: Sequence[Mapping[str, float]], *, macs: Mapping[str, float] | None = None) -> None:
        self.macs = dict(macs or {})
        self._curves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for bits in (FLOAT_BITS, INT_BITS):
            points = sorted((one["amount"], one["ms"]) for one in measured if one["bits"] == bits and one["ms"] > 0)
            if points:
                amounts, times = np.array(points).T
                self._curves[bits] = amounts, monotone(np.log(times), rising=False)
        self._fit = Ridge([0.05, 0.2, 0.5])

    def predict(self, settings: Settings) -> float | None:
        """Return milliseconds; ``None`` where neither the look nor a trial has measured anything."""
        if not self._curves:
            return None
        amounts = np.append(GRID[settings.amount > GRID], settings.amount)
        return float(np.exp(min(self._raw(settings, a) + self._fit.of(self._features(settings, a)) for a in amounts)))

    def observe(self, settings: Settings, measured: float) -> None:
        """Learn from what a trial took, in milliseconds."""
        if not measured > 0:
            return
        if not self._curves:  # the first trial is all that is known
            bits = FLOAT_BITS if settings.quantize == "none" else INT_BITS
            self._curves[bits] = np.array([settings.amount]), np.array([math.log(measured)])
            return
        correction = math.log(measured) - self._raw(settings, settings.amount)
        self._fit.add(self._features(settings, settings.amount), correction)

    def _raw(self, settings: Settings, amount: float) -> float:
        """Return the logarithm of milliseconds by the look alone."""
        if settings.quantize == "none":
            return self._log_ms(FLOAT_BITS, amount)
        integer, whole = self._log_ms(INT_BITS, amount), sum(self.macs.values())
        share = sum(self.macs.get(name, 0.0) for name in settings.exclude) / whole if whole else 0.0
        if not share:
            return integer
        return math.log((1 - share) * math.exp(integer) + share * math.exp(self._log_ms(FLOAT_BITS, amount)))

    def _log_ms(self, bits: int, amount: float) -> float:
        """Return a curve's value; of one that is missing or is a single point the other's shape."""
        own = self._curves.get(bits)
        other = self._curves.get(INT_BITS if bits == FLOAT_BITS else FLOAT_BITS)
        gain = math.log(INT_GAIN) * (1 if bits == INT_BITS else -1)
        if own is None:
            assert other is not None
            return gain + interpolated(*other, amount)
        if len(own[0]) == 1 and other is not None and len(other[0]) > 1:
            return float(own[1][0]) + interpolated(*other, amount) - interpolated(*other, float(own[0][0]))
        return interpolated(*own, amount)

    @staticmethod
    def _features(settings: Settings, amount: float) -> list[float]:
        return [1.0, float(settings.quantize != "none"), amount]


class DropModel:
    """The drop by the damage that pruning and rounding do before any training, and the epochs that repair it.

    Before anything is measured the drop is the damage, divided by one more than the epochs. What trials lost corrects
    this by least squares in logarithms, towards nothing: a factor, the power of the damage, the power of the epochs.
    More damage never predicts a lower drop, nor do more epochs predict a higher one.

    Args:
        groups: ``{"name", "curve": [[share, damage], …]}`` of the look.
        layers: ``{"name", "drop"}`` of the look: what rounding a layer alone costs.
        shares: returns the share that is pruned of each group, by name; by default the amount.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]] = (), *,
        shares: Callable[[Settings], Mapping[str, float]] | None = None,
    ) -> None:  # fmt: skip
        self._groups = {}
        for group in groups:
            if group.get("curve"):
                at, damage = np.array(sorted(map(tuple, group["curve"])), float).T
                self._groups[group["name"]] = at, np.maximum(monotone(damage, rising=True), 0.0)
        self._layers = {layer["name"]: max(0.0, layer.get("drop") or 0.0) for layer in layers}
        self._shares = shares
        self._seen: list[tuple[float, float, float]] = []

    def damage(self, settings: Settings) -> float:
        """Return what is lost before any training, as the look measured it part by part."""
        shares = self._shares(settings) if self._shares is not None and settings.amount else {}
        total = 0.0
        for name, (at, damage) in self._groups.items():
            share = shares.get(name, settings.amount)
            total += max(0.0, interpolated(np.append(0.0, at), np.append(0.0, damage), share)) if share else 0.0
        if settings.quantize != "none":
            total += sum(drop for name, drop in self._layers.items() if name not in settings.exclude)
        return total

    def predict(self, settings: Settings) -> float:
        """Return the drop, zero or more."""
        damage, trained = math.log(self.damage(settings) + UNSEEN), math.log1p(settings.epochs)
        factor, slope, repair, middle = self._correction()
        value = factor + middle + slope * (damage - middle) + repair * trained
        return max(0.0, math.exp(value) - UNSEEN)

    def observe(self, settings: Settings, measured: float) -> None:
        """Learn from what a trial lost."""
        if not math.isfinite(measured):
            return
        damage, trained = math.log(self.damage(settings) + UNSEEN), math.log1p(settings.epochs)
        self._seen.append((damage, trained, math.log(max(0.0, measured) + UNSEEN)))

    def strongest(self, settings: Any, max_drop: float) -> float:
        """Return the largest amount whose predicted drop is allowed, of a dataclass of settings; 0 where none is."""
        fits = [float(a) for a in GRID if self.predict(replace(settings, amount=float(a))) <= max_drop]
        return max(fits, default=0.0)

    def _correction(self) -> tuple[float, float, float, float]:
        """Return a factor's logarithm, the powers of damage and of epochs, and the damage that the first is about."""
        if not self._seen:
            return 0.0, 1.0, RECOVERY, 0.0
        damage, trained, drop = np.array(self._seen).T
        middle = float(damage.mean())
        fit = Ridge([0.1, 0.5, 0.5])
        for d, t, y in zip(damage, trained, drop, strict=True):
            fit.add([1.0, d - middle, t], y - d - RECOVERY * t)
        factor, slope, repair = fit.weights
        return float(factor), max(0.0, 1 + float(slope)), min(0.0, RECOVERY + float(repair)), middle


class Ridge:
    """Least squares towards zero, over what was added so far.

    Args:
        strength: how much each weight is held at zero.
    """

    def __init__(self, strength: Sequence[float]) -> None:
        self._normal = np.diag(np.asarray(strength, float))
        self._right = np.zeros(len(strength))

    @property
    def weights(self) -> np.ndarray:
        """Of the features."""
        return np.linalg.solve(self._normal, self._right)

    def add(self, features: Sequence[float], value: float) -> None:
        """Add an observation."""
        row = np.asarray(features, float)
        self._normal += np.outer(row, row)
        self._right += row * value

    def of(self, features: Sequence[float]) -> float:
        """Return the fitted value."""
        return float(self.weights @ np.asarray(features, float))


def monotone(values: np.ndarray, *, rising: bool) -> np.ndarray:
    """Return the nearest values, by least squares, that never fall, or never rise: pool adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in values if rising else -values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    pooled = np.repeat([value for value, _ in blocks], [count for _, count in blocks])
    return pooled if rising else -pooled


def interpolated(at: np.ndarray, values: np.ndarray, where: float) -> float:
    """Return a piecewise linear curve's value; beyond its end the last piece goes on."""
    if len(at) > 1 and where > at[-1] > at[-2]:
        return float(values[-1] + (values[-1] - values[-2]) / (at[-1] - at[-2]) * (where - at[-1]))
    return float(np.interp(where, at, values))
