"""The ranges of activations: how they follow what passes by."""

from collections.abc import Callable

import torch
from torch import Tensor

from lighten.errors import UserError, did_you_mean

Update = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(low, high, batch_low, batch_high) -> (low, high)``, each of shape (sites,); NaN where nothing was seen yet."""

MOMENTUM = 0.05
"""Weight of the newest batch in a moving average."""


def moving_average(low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor) -> tuple[Tensor, Tensor]:
    """Let the range move by 5 % of the way to each batch's; the first batch sets it (Jacob et al. 2018, section 3)."""
    first = low.isnan()
    return (
        torch.where(first, batch_low, torch.lerp(low, batch_low, MOMENTUM)),
        torch.where(first, batch_high, torch.lerp(high, batch_high, MOMENTUM)),
    )


def min_max(low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the smallest and the largest value ever seen."""
    return torch.fmin(low, batch_low), torch.fmax(high, batch_high)


RANGES: dict[str, Update] = {"moving_average": moving_average, "min_max": min_max}


def range_update(name: str) -> Update:
    """Return the update rule that ``ranges=name`` means.

    Raises:
        UserError: on an unknown name.
    """
    if name not in RANGES:
        raise UserError(f"ranges={name!r} is unknown; {did_you_mean(name, RANGES)}")
    return RANGES[name]
