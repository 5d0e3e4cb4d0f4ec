"""Networks whose outputs depend on rounding, as choices among equal scores do."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lighten.pruning.check import cast_, distance, outputs_of
from lighten.utils.clone import clone

SUMS = (
    "convolution", "mkldnn", "mm", "addmm", "bmm", "baddbmm", "linear", "sum", "cumsum", "mean", "var", "softmax",
    "log_softmax", "scaled_dot_product", "fused_rms_norm", "native_layer_norm", "native_batch_norm",
    "native_group_norm", "linalg_vector_norm",
)  # fmt: skip
"""Operators that add up many numbers; their names begin so, after underscores."""


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


def rounding_shows(
    model: nn.Module,
    example: Mapping[str, Any],
    dtype: torch.dtype,
    tolerance: float,
    autocast: torch.dtype | None = None,
) -> bool:
    """Say whether a model's outputs differ from themselves where its sums are rounded otherwise.

    Args:
        model: left as it is.
        example: what :func:`~lighten.pruning.check.describe` returned.
        dtype: of the weights and the input.
        tolerance: how far apart equal outputs may be, see :func:`~lighten.pruning.check.distance`.
        autocast: run under autocast to this type.

    Raises:
        RuntimeError: what the model raises, if it cannot be run so.
    """
    run = cast_(clone(model).eval(), dtype)
    device = next((p.device for p in run.parameters()), torch.device("cpu"))
    found = []
    for modes in ((), (RoundedOtherwise(),)):
        with ExitStack() as under:
            under.enter_context(torch.autocast(device.type, autocast, enabled=autocast is not None))
            for mode in modes:
                under.enter_context(mode)
            found.append(outputs_of(run, example, dtype))
    return not distance(*found) <= tolerance
