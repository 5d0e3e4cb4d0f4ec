"""Batch norm as part of the layer before it."""

from typing import Any

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_foldable(norm: nn.Module) -> bool:
    """Return whether ``norm`` is a batch norm with running statistics, which is then a scale and a shift."""
    return isinstance(norm, NORMS) and norm.track_running_stats and norm.running_var is not None


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one layer that equals layer and batch norm together.

    With the running statistics, ``norm(W x + b) = (g W) x + (b - mean) g + beta`` where
    ``g = gamma / sqrt(var + eps)`` per output channel (Jacob et al. 2018, eq. 14). Gradients reach weight, bias, gamma
    and beta; the statistics are constants.

    Args:
        weight: (out, in, ...).
        bias: (out,) or ``None``.
        norm: a batch norm over ``out`` channels.
    """
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * gain
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * gain.view(-1, *[1] * (weight.dim() - 1)), shift
