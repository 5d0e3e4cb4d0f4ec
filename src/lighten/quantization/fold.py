"""Batch norm folding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_foldable(norm: nn.Module) -> bool:
    """Return whether ``norm`` is a batch norm with running statistics, which is then a scale and a shift.

    One that synchronises its statistics over ranks is, too. One that does more, such as applying its activation, is
    not, nor one whose statistics are the plain average of all batches, which they no longer are once they are frozen.
    """
    kind = type(norm)
    born = kind.forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    plain = born and kind.__call__ is nn.Module.__call__ and "forward" not in norm.__dict__
    if not (isinstance(norm, _BatchNorm) and plain):
        return False
    return norm.track_running_stats and norm.running_var is not None and norm.momentum is not None


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: Any, *, axis: int = 0, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one layer that equals layer and batch norm together.

    With the running statistics, ``norm(W x + b) = (g W) x + (b - mean) g + beta`` where
    ``g = gamma / sqrt(var + eps)`` per output channel (Jacob et al. 2018, eq. 14). Gradients reach weight, bias, gamma
    and beta; the statistics are constants.

    Args:
        weight: (out, in / groups, ...); of a transposed convolution (in, out / groups, ...).
        bias: (out,) or ``None``.
        norm: a batch norm over ``out`` channels.
        axis: of the output channels in ``weight``, 0 or 1.
        groups: of a transposed convolution.
    """
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -mean * gain if norm.bias is None else torch.addcmul(norm.bias, mean, gain, value=-1)
    return weight * along_outputs(gain, weight, axis=axis, groups=groups), shift


def along_outputs(values: Tensor, weight: Tensor, *, axis: int = 0, groups: int = 1) -> Tensor:
    """Return ``values`` (out,) in a shape that broadcasts over ``weight``, along its output channels."""
    ones = [1] * (weight.dim() - 2)
    if axis == 0:
        return values.view(-1, 1, *ones)
    return values.view(groups, 1, -1, *ones).expand(-1, weight.shape[0] // groups, -1, *ones).flatten(0, 1)
