"""Which: one score a filter. The lowest goes first."""

from collections.abc import Callable

import torch
from torch import Tensor

EXACT_DISTANCES = 2**27
"""Distances are taken by subtraction up to this many, and beyond by matrix product, ten times as fast."""

Score = Callable[[Tensor], Tensor]
"""Filters (out, in, …) to float32 scores (out,)."""


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
    exact = filters.shape[0] * filters.numel() <= EXACT_DISTANCES
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    distances = torch.cdist(filters, filters, compute_mode=mode)
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


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32).reshape(weight.shape[0], -1)


SCORES: dict[str, Score] = {"fpgm": fpgm, "magnitude": magnitude}
"""The scores by the names that settings use."""
