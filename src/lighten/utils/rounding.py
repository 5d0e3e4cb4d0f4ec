"""Rounding that is another than the usual, to see whether it decides what a network puts out."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SUMS = (
    "convolution", "mkldnn", "mm", "addmm", "bmm", "baddbmm", "linear", "sum", "cumsum", "mean", "var", "softmax",
    "log_softmax", "scaled_dot_product", "fused_rms_norm", "native_layer_norm", "native_batch_norm",
    "native_group_norm", "linalg_vector_norm",
)  # fmt: skip
"""Operators that add up many numbers; their names begin so, after underscores."""
UNITS = (2.0, 8.0, 32.0)
"""By how many units in the last place sums are changed, to see what rounding does: other kernels differ so."""


class RoundedOtherwise(TorchDispatchMode):
    """Changes what sums come to by some units in the last place at most, as another order of their terms does."""

    def __init__(self, units: float = 2.0) -> None:
        super().__init__()
        self._units = units
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.overloadpacket.__name__.lstrip("_").startswith(SUMS) or func._schema.is_mutable:
            return result
        if isinstance(result, Tensor):
            return self._nudged(result)
        return (self._nudged(result[0]), *result[1:])

    def _nudged(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64).to(value.device, value.dtype)
        return value + value * (self._units * torch.finfo(value.dtype).eps) * (noise - 0.5)
