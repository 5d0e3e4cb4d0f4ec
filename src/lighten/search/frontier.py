"""The frontier of a search: what no other trial beats, which of it is the best, and which the nearest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lighten.search.needs import FIGURES, Needs

AXES = ("latency_ms", "bytes")
"""What every frontier trades the drop for."""
_NO_DROP = 0.001
"""A drop that counts as once too much where none is allowed."""


@dataclass(frozen=True)
class Point:
    """A trial that came to an end.

    Attributes:
        trial: its number.
        folder: of the trial, in the search's folder.
        metric: the leading one, on the split that is chosen on.
        drop: from the original there.
        figures: ``latency_ms``, ``bytes``, ``macs``, ``parameters``, as far as they were measured.
        bound: the drop to reckon with on other samples, as :func:`lighten.search.confirm.safe_drop` says it; by
            default the drop itself.
    """

    trial: int
    folder: str
    metric: float
    drop: float
    figures: Mapping[str, float] = field(default_factory=dict)
    bound: float | None = None

    @property
    def reckoned(self) -> float:
        """The drop that a choice reckons with: at least what was measured."""
        return self.drop if self.bound is None else max(self.drop, self.bound)


def frontier_of(points: Sequence[Point], needs: Needs) -> list[Point]:
    """Return the points that no other beats, by drop.

    A point beats another if it is at least as good in drop, latency, size and whatever else is limited, and better in
    one of them. Of points that are alike the first stays.
    """
    axes = _axes(needs)
    values = [_values(point, axes) for point in points]
    kept = [
        point
        for i, (point, own) in enumerate(zip(points, values, strict=True))
        if not any(_beats(other, own) or (other == own and j < i) for j, other in enumerate(values))
    ]
    return sorted(kept, key=lambda point: (point.drop, point.trial))


def best_of(points: Sequence[Point], needs: Needs) -> tuple[Point | None, Point]:
    """Return the best point that meets the needs, if one does, and the one that comes nearest.

    What the choice reckons with is ``Point.reckoned``, so that it stands on other samples as well. Where a drop is
    allowed, the best is the fastest and smallest: the least product of latency and size. Where it is not spoken of, the
    best loses least. The nearest breaks its worst-met need by the smallest factor; it is the best where there is one.

    Args:
        points: one or more.
        needs: resolved, so that no share of the original is left.
    """
    assert points, "no trial came to an end"
    meeting = [point for point in points if not needs.met_by(point.figures, point.reckoned)]
    if meeting:
        best = min(meeting, key=lambda point: (*_worth(point, needs), point.trial))
        return best, best
    return None, min(points, key=lambda point: (excess(point, needs), *_worth(point, needs), point.trial))


def excess(point: Point, needs: Needs) -> float:
    """Return by what factor the worst-met need is broken, less one; zero where none is."""
    factors = [point.figures.get(name, math.inf) / limit for name, limit in needs.limits.items()]
    if needs.max_drop is not None:
        factors.append(1 + max(0.0, point.reckoned - needs.max_drop) / (needs.max_drop or _NO_DROP))
    return max([0.0, *(factor - 1 for factor in factors)])


def _axes(needs: Needs) -> list[str]:
    return [*AXES, *(name for name in FIGURES if name in needs.limits and name not in AXES)]


def _values(point: Point, axes: Sequence[str]) -> tuple[float, ...]:
    return tuple(
        math.inf if value is None or math.isnan(value) else value
        for value in (point.drop, *(point.figures.get(name) for name in axes))
    )


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _worth(point: Point, needs: Needs) -> tuple[float, ...]:
    """Return what is to be least, first things first."""
    cost = math.prod(_values(point, AXES)[1:])
    return (point.reckoned, cost) if needs.max_drop is None else (cost, point.reckoned)
