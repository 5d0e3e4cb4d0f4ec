"""Networks whose outputs depend on rounding, as choices among equal scores do."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lighten.pruning.check import cast_, distance, outputs_of
from lighten.utils.clone import clone
from lighten.utils.rounding import RoundedOtherwise


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
