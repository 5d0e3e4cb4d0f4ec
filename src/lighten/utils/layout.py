"""The order of a network's channels in memory: last where that is fast, first where oneDNN's gradients are wrong.

oneDNN's strided 1x1 convolution writes past its buffer in the backward pass when channels come last and are fewer than
a vector register holds: gradients are wrong without a word, or the process dies (uxlfoundation/oneDNN issue 6035, seen
with 2 to 7 channels on AVX2). Registers hold at most 16 floats.
"""

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

WIDEST_REGISTER = 16
"""Floats in a register of AVX-512."""


def is_narrow(model: nn.Module) -> bool:
    """Return whether a 1x1 convolution with a stride has so few channels that they must not come last."""
    return any(
        1 < m.in_channels // m.groups < WIDEST_REGISTER and max(m.stride) > 1 and max(m.kernel_size) == 1
        for m in model.modules()
        if isinstance(m, nn.modules.conv._ConvNd)
    )


def best_layout(model: nn.Module) -> torch.memory_format:
    """Return the memory format to train ``model`` in: channels last (faster on CPUs, and what tensor cores want)."""
    return torch.contiguous_format if is_narrow(model) else torch.channels_last


def laid_as(data: Tensor, like: Tensor) -> Tensor:
    """Return ``data`` in the memory format of ``like``, also where one channel leaves that to the strides alone.

    A convolution's weight of one input channel says by its strides in which order all that follows is computed.
    """
    layout = suggest_memory_format(like) if like.ndim in (4, 5) and data.ndim == like.ndim else torch.contiguous_format
    if layout == torch.contiguous_format:
        return data.contiguous()
    return torch.empty_like(data, memory_format=layout).copy_(data)
