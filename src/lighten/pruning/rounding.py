"""Networks whose outputs depend on rounding, as choices among equal scores do."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lighten.pruning.check import cast_, distance, outputs_of
from lighten.pruning.tensors import tensors_of
from lighten.utils.clone import clone

SUMS = (
    "convolution", "mm", "addmm", "bmm", "baddbmm", "sum", "mean", "native_layer_norm", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "scaled_dot_product",
)  # fmt: skip
"""Operators that add up many numbers; their names begin so."""


class RoundedOtherwise(TorchDispatchMode):
    """Changes what sums come to by less than the order of their terms does."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.overloadpacket.__name__.startswith(SUMS) or func._schema.is_mutable:
            return result
        if isinstance(result, Tensor):
            return self._nudged(result)
        return (self._nudged(result[0]), *result[1:])

    def _nudged(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64).to(value.device, value.dtype)
        return value + value * (8 * torch.finfo(value.dtype).eps) * (noise - 0.5)


def rounding_shows(model: nn.Module, example: Mapping[str, Any], dtype: torch.dtype, tolerance: float) -> bool:
    """Say whether a model's outputs differ from themselves where its sums are rounded otherwise.

    Args:
        model: left as it is.
        example: what :func:`~lighten.pruning.check.describe` returned.
        dtype: of the weights and the input.
        tolerance: how far apart equal outputs may be, see :func:`~lighten.pruning.check.distance`.

    Raises:
        RuntimeError: what the model raises, if it cannot be run so.
    """
    run = cast_(clone(model).eval(), dtype)
    outputs = outputs_of(run, example, dtype)
    return not distance(outputs, outputs_of(run, example, dtype, under=RoundedOtherwise())) <= tolerance


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
