"""When: how strongly something acts at a given progress of the fit."""

import math
from collections.abc import Callable

from lighten.errors import UserError, did_you_mean

SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
    "linear": lambda t: t,
    "exponential": lambda t: (1.0 - 100.0**-t) / 0.99,
    "one_shot": lambda t: 1.0,
}
"""How a ramp rises: functions of [0, 1] to [0, 1]. ``exponential`` leaves, of what is still to come, the same share in
equal times, a hundredth in the end; ``one_shot`` is there at once.

Source: ``cubic`` is equation 1 of Zhu & Gupta, To Prune or Not to Prune, 2017 (arXiv 1710.01878).
"""


def ramp(progress: float, *, begin: float, end: float, shape: str = "cubic") -> float:
    """Return 0 before ``begin``, 1 from ``end`` on, and in between what ``shape`` says.

    Where ``begin == end`` it is a step at ``end``. A pure function, so there is nothing to save or to resume.

    Args:
        progress: share of the fit's optimizer steps that are done, in [0, 1].
        begin: share at which the ramp starts.
        end: share at which it has reached 1.
        shape: ``"cubic"``, fast at first, ``"linear"``, ``"exponential"``, faster still, or ``"one_shot"``.

    Raises:
        UserError: as :func:`check_ramp`, or if ``progress`` is not a number.

    Example:
        >>> ramp(0.35, begin=0.1, end=0.6)
        0.875
    """
    check_ramp(begin=begin, end=end, shape=shape)
    if math.isnan(progress):
        raise UserError(f"progress={progress}, expected a number in [0, 1]")
    if progress >= end:
        return 1.0
    if progress <= begin:
        return 0.0
    return SHAPES[shape]((progress - begin) / (end - begin))


def check_ramp(*, begin: float, end: float, shape: str = "cubic") -> None:
    """Check the settings of a ramp before anything runs.

    Raises:
        UserError: if one of them is outside [0, 1], ``end`` is before ``begin``, or ``shape`` is unknown.
    """
    for name, value in (("begin", begin), ("end", end)):
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name}={value}, expected a share of the fit in [0, 1]; set {name} between 0 and 1")
    if end < begin:
        raise UserError(f"end={end} comes before begin={begin}; set end to at least begin")
    if shape not in SHAPES:
        raise UserError(f"no ramp has the shape {shape!r}; {did_you_mean(shape, SHAPES)}")
