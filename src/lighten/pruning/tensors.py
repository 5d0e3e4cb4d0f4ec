"""The tensors of a module by name, and new data for them."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lighten.utils.layout import laid_as


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters, buffers and other tensors that modules keep as attributes, by every name that they have."""
    return {
        **{
            f"{name}.{key}" if name else key: value
            for name, module in model.named_modules(remove_duplicate=False)
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        },
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def set_data_(tensor: Tensor, data: Tensor, grad: Tensor | None = None) -> None:
    """Give a tensor other data, of another shape, and a gradient of that shape.

    What autograd remembers of a parameter's shape goes with a change of type alone, so that one comes between: else a
    graph that somebody still holds would have the next backward pass expect the old shape.
    """
    if tensor.is_leaf:
        tensor.grad = None
    if isinstance(tensor, nn.Parameter):
        tensor.data = torch.empty(0, dtype=torch.float16 if data.dtype != torch.float16 else torch.float32)
    tensor.data = data
    if grad is not None:
        tensor.grad = grad


def keep_(tensor: Tensor, dim: int, kept: Tensor) -> None:
    """Keep the positions ``kept`` along a dimension, of a tensor and of its gradient."""
    places = kept.to(tensor.device)
    grad = tensor.grad if tensor.is_leaf else None
    data = laid_as(tensor.data.index_select(dim, places), tensor)
    set_data_(tensor, data, None if grad is None else laid_as(grad.index_select(dim, places), grad))


def randomise_(model: nn.Module, statistics: Collection[str], generator: torch.Generator) -> None:
    """Give every weight a value that shows, so that no branch of zeros hides a wrong cut and no scores are equal.

    Args:
        model: its weights are set in place.
        statistics: names of buffers that are positive numbers, one a channel.
        generator: of the random numbers.
    """
    for name, tensor in tensors_of(model).items():
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.ndim > 1:
            fan_in = max(1, tensor[0].numel())
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
        elif isinstance(tensor, nn.Parameter) or name in statistics:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
