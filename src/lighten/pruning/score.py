"""Importance scores of filters; the lowest are removed first."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.pruning.settings import PruneSettings

EXACT_DISTANCES = 2**24
"""Distances are taken by subtraction up to this many, and beyond by matrix product, ten times as fast."""
BLOCK = 512
"""How many filters are multiplied with as many others at a time."""
NEAR = 1e-3
"""Filters this near to each other, squared and relative to their squared norms, are multiplied in float64."""


@torch.no_grad()
def fpgm(weight: Tensor) -> Tensor:
    """Return the summed Euclidean distance of each filter to all others.

    A filter near the geometric median of its layer is one that the others can stand in for. Equal filters get
    equal scores. Weights are read in float32.

    Args:
        weight: filters (out, in, …).

    Returns:
        Scores (out,), float32.

    Source: He et al., Filter Pruning via Geometric Median, CVPR 2019 (arXiv 1811.00250), equation 6.

    Example:
        >>> fpgm(torch.tensor([[0.0], [1.0], [5.0]]))
        tensor([6., 5., 9.])
    """
    filters = _rows(weight)
    if filters.shape[0] * filters.numel() > EXACT_DISTANCES:
        return _summed_distances(filters)
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(0.0).sum(dim=1)


@torch.no_grad()
def magnitude(weight: Tensor) -> Tensor:
    """Return the L2 norm of each filter.

    Args:
        weight: filters (out, in, …); read in float32.

    Returns:
        Scores (out,), float32.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv 1608.08710), with L2 for L1.
    """
    return torch.linalg.vector_norm(_rows(weight), dim=1)


@torch.no_grad()
def l1(weight: Tensor) -> Tensor:
    """Return the L1 norm of each filter.

    Args:
        weight: filters (out, in, …); read in float32.

    Returns:
        Scores (out,), float32.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv 1608.08710), section 3.1.
    """
    return torch.linalg.vector_norm(_rows(weight), ord=1, dim=1)


@torch.no_grad()
def mix(weight: Tensor, *, rate_norm: float = PruneSettings.rate_norm, gone: int = 0) -> Tensor:
    """Rank the share ``1 - rate_norm`` of smallest L2 norm lowest, then the others by :func:`fpgm` among themselves.

    What is removed beyond that share is the paper's ``rate_dist``: an amount of 0.4 with ``rate_norm`` 0.9 removes
    10 % by norm and 30 % by distance.

    Args:
        weight: filters (out, in, …) that still live; read in float32.
        rate_norm: share of all filters, the gone ones included, that a norm lets pass, in (0, 1].
        gone: filters that were removed before, by norm first.

    Returns:
        Scores (out,), float32: negative, by norm, for the first share; distances for the rest.

    Source: He et al., CVPR 2019 (arXiv 1811.00250), section 4.1, FPGM-mix.
    """
    norms = magnitude(weight)
    by_norm = int((1.0 - rate_norm) * (len(norms) + gone) + 1e-9) - gone
    if by_norm <= 0:
        return fpgm(weight)
    order = torch.sort(norms, stable=True).indices
    scores = torch.empty_like(norms)
    scores[order[:by_norm]] = torch.arange(-by_norm, 0, dtype=norms.dtype, device=norms.device)
    scores[order[by_norm:]] = fpgm(weight[order[by_norm:]])
    return scores


@torch.no_grad()
def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the squared first-order change of the loss if each filter were zero.

    Args:
        weight: filters (out, in, …); read in float32.
        gradient: of the loss, in the same shape.

    Returns:
        Scores (out,), float32. Those of several steps are added.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (arXiv 1906.10771),
    equation 8, summed within a filter.
    """
    return (_rows(weight) * _rows(gradient)).sum(dim=1).square()


def random(count: int, *, name: str) -> Tensor:
    """Return scores in [0, 1) that depend on nothing but ``name``: the baseline that a criterion has to beat.

    Args:
        count: filters.
        name: of the group; the same name gives the same scores at every update.

    Returns:
        Scores (count,), float32.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(count, generator=generator)


@dataclass(frozen=True)
class Norms:
    """Whether a norm ranks a group's filters well, by the two conditions of He et al., CVPR 2019, section 3.2.

    Attributes:
        spread: standard deviation of the L2 norms over their mean; widely spread from ``SPREAD`` on.
        floor: smallest norm over the mean; near zero up to ``FLOOR``.
    """

    spread: float
    floor: float

    @property
    def rank_well(self) -> bool:
        """Whether both conditions hold."""
        return self.spread >= SPREAD and self.floor <= FLOOR

    def __str__(self) -> str:
        wide = "widely spread" if self.spread >= SPREAD else "alike"
        near = "near zero" if self.floor <= FLOOR else "far from zero"
        return f"norms {wide} ({self.spread:.2f} of their mean), the smallest {near} ({self.floor:.2f})"


SPREAD, FLOOR = 0.3, 0.2
"""The conditions of :class:`Norms`."""


def conditions(norms: Tensor) -> Norms:
    """Measure both conditions on the L2 norms (out,) of live filters."""
    mean = float(norms.mean()) or 1.0
    return Norms(spread=float(norms.std(correction=0)) / mean, floor=float(norms.min()) / mean)


def _summed_distances(filters: Tensor) -> Tensor:
    """Return the summed distance of each filter to all others by products of blocks, each pair's once.

    About their mean, the difference of squares and product loses few digits; where it does, float64 has them.
    """
    blocks = (filters - filters.mean(dim=0)).split(BLOCK)
    squares = [torch.linalg.vector_norm(block, dim=1).square() for block in blocks]
    sums = [torch.zeros(len(block), dtype=torch.float64, device=filters.device) for block in blocks]
    for i, one in enumerate(blocks):
        for j, other in enumerate(blocks[i:], start=i):
            both = squares[i][:, None] + squares[j]
            apart = torch.addmm(both, one, other.T, alpha=-2)
            near = apart < NEAR * both
            if bool((near.fill_diagonal_(False) if i == j else near).any()):
                exact = [torch.linalg.vector_norm(block.double(), dim=1).square() for block in (one, other)]
                apart = torch.addmm(exact[0][:, None] + exact[1], one.double(), other.T.double(), alpha=-2)
            distances = apart.clamp_(min=0).sqrt_()
            if i == j:
                sums[i] += distances.fill_diagonal_(0).sum(dim=1)
            else:
                sums[i] += distances.sum(dim=1)
                sums[j] += distances.sum(dim=0)
    return torch.cat(sums).float()


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32).reshape(weight.shape[0], -1)
