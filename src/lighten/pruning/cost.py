"""Multiply-accumulates and parameters as functions of the channels removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lighten.pruning.groups import Structure

MAX_FACTORS = 4
"""Dimensions that shrink in one term, at most."""


@dataclass(frozen=True)
class SumOfProducts:
    """A sum of products: ``base`` times the share that is left of each dimension, linear in the channels that go."""

    base: NDArray[np.float64]
    slopes: NDArray[np.float64]

    def left(self, counts: Sequence[int]) -> NDArray[np.float64]:
        """Return the share that is left of each dimension, (factors, terms)."""
        return 1.0 - self.slopes @ np.asarray(counts, dtype=np.float64)

    def __call__(self, counts: Sequence[int]) -> float:
        """Return the sum with ``counts`` channels of each group gone."""
        return float(self.base @ self.left(counts).prod(axis=0))


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates and parameters of a network whose groups lose channels.

    Example:
        >>> from torch import nn, randn
        >>> from lighten.pruning.planner import trace_structure
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> costs = costs_of(trace_structure(net, ((randn(1, 4),), {})))
        >>> costs.parameters([0]), costs.parameters([4])
        (48.0, 24.0)
    """

    macs: SumOfProducts
    parameters: SumOfProducts

    def removed(self, counts: Sequence[int], target: str) -> float:
        """Return the share of ``"macs"`` or ``"parameters"`` that goes with ``counts``, in [0, 1]."""
        terms = self.macs if target == "macs" else self.parameters
        return 1.0 - terms(counts) / terms([0] * len(counts))

    def through(self, group: int) -> float:
        """Return the share of multiply-accumulates that go through the channels of a group, in or out."""
        groups = self.macs.slopes.shape[2]
        unit = [int(i == group) for i in range(groups)]
        slopes = self.macs.slopes @ np.asarray(unit, dtype=np.float64)
        return float(self.macs.base[(slopes > 0).any(axis=0)].sum() / max(1.0, self.macs.base.sum()))


def costs_of(structure: Structure) -> Costs:
    """Return the costs of a network, ready to be evaluated often."""
    units: dict[tuple[str, int], dict[int, int]] = {}
    for which, group in enumerate(structure.groups):
        for slot, index in group.positions.items():
            units.setdefault((slot.tensor, slot.dim), {})[which] = index.shape[1]
    parameters = [
        (float(np.prod(shape)), [(structure.sizes[key], units[key]) for key in _axes(name, shape, units)])
        for name, shape in structure.shapes.items()
    ]
    owner = {int(root): which for which, group in enumerate(structure.groups) for root in group.roots.tolist()}
    macs = [(float(cost.macs), [_axis_units(factor, owner) for factor in cost.factors]) for cost in structure.costs]
    count = len(structure.groups)
    return Costs(_terms(macs, count), _terms(parameters, count))


def _axes(name: str, shape: tuple[int, ...], units: Mapping[tuple[str, int], object]) -> list[tuple[str, int]]:
    return [(name, dim) for dim in range(len(shape)) if (name, dim) in units]


def _axis_units(factor: tuple[int, ...], owner: Mapping[int, int]) -> tuple[int, dict[int, int]]:
    """Return the length of a dimension, and per group the positions of all its channels there."""
    found: dict[int, int] = {}
    roots: dict[int, set[int]] = {}
    for root in factor:
        if root in owner:
            found[owner[root]] = found.get(owner[root], 0) + 1
            roots.setdefault(owner[root], set()).add(root)
    return len(factor), {which: n // len(roots[which]) for which, n in found.items()}


def _terms(rows: Sequence[tuple[float, Sequence[tuple[int, Mapping[int, int]]]]], groups: int) -> SumOfProducts:
    slopes = np.zeros((MAX_FACTORS, len(rows), groups))
    for row, (_, dims) in enumerate(rows):
        for factor, (size, units) in enumerate(dims):
            for which, unit in units.items():
                slopes[factor, row, which] = unit / size
    return SumOfProducts(np.array([base for base, _ in rows]), slopes)
