"""The order of a network's channels in memory: last where that is fast, first where oneDNN's gradients are wrong.

oneDNN's strided 1x1 convolution writes past its buffer in the backward pass when channels come last and are fewer than
a vector register holds: gradients are wrong without a word, or the process dies (uxlfoundation/oneDNN issue 6035, seen
with 2 to 7 channels on AVX2). Registers hold at most 16 floats.
"""

import torch
from torch import nn

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
