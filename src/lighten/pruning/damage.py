"""Damage to the outputs as a function of the channels removed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

DamageCurve = Sequence[tuple[float, float]]
"""Points (share of a group's channels that go, damage to the outputs), from (0, 0) on, shares rising."""


@dataclass(frozen=True)
class GroupSensitivity:
    """How sensitive the outputs are to one group: its curve, and what goes with all of its channels."""

    curve: DamageCurve
    saving: float

    def share_at(self, price: float) -> float:
        """Return the share of the group to remove where one unit of what is saved is worth ``price`` of damage."""
        points = _hull(self.curve)
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
        worth = price * self.saving
        if worth <= 0 or not slopes:
            return 0.0
        middles = [0.0, *((a[0] + b[0]) / 2 for a, b in itertools.pairwise(points)), points[-1][0]]
        levels = [
            0.0,
            *slopes,
            slopes[-1] * 4 + 1e-12,
        ]  # damage is taken to grow four times as fast beyond
        at = next((i for i, level in enumerate(levels) if level > worth), len(levels))
        if at == len(levels):
            return points[-1][0]
        low, high = levels[at - 1], levels[at]
        return middles[at - 1] + (middles[at] - middles[at - 1]) * (worth - low) / (high - low)


def _hull(curve: DamageCurve) -> list[tuple[float, float]]:
    """Return the lower convex hull of a curve: the damage that cannot be had cheaper by mixing two shares."""
    hull: list[tuple[float, float]] = []
    for point in curve:
        while len(hull) > 1 and _turns(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return hull


def _turns(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
