"""Kinds of layers that have an int8 form."""

from functools import cache
from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether ``module`` is the linear layer of GPT-2 in ``transformers``, which has its weight transposed."""
    kind: Any = type(module)
    return _is_conv1d(kind)


@cache
def _is_conv1d(layer: Any) -> bool:
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in layer.__mro__)


def is_linear(module: nn.Module) -> bool:
    """Return whether ``module`` is a linear layer, of PyTorch or that one of ``transformers``."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def channel_axis(module: nn.Module) -> int:
    """Return which dimension of a layer's weight its output channels are in; of an embedding, its rows."""
    return 1 if isinstance(module, TRANSPOSED) or is_conv1d(module) else 0


def output_groups(layer: Any) -> int:
    """Return in how many groups the output channels of a layer's weight repeat."""
    return layer.groups if isinstance(layer, TRANSPOSED) else 1


def compute(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    """Return what ``layer`` computes of ``x`` with this ``weight`` and ``bias``; the rest is its forward's."""
    if is_linear(layer):
        return nn.functional.linear(x, weight.t() if is_conv1d(layer) else weight, bias)
    if isinstance(layer, CONVOLUTIONS):
        return layer._conv_forward(x, weight, bias)
    return _transposed(layer, x, weight, bias, *args, **kwargs)


def _transposed(
    layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None
) -> Tensor:
    spatial = len(layer.kernel_size)
    padding = layer._output_padding(
        x, output_size, layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation
    )
    convolve = getattr(nn.functional, f"conv_transpose{spatial}d")
    return convolve(x, weight, bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation)
