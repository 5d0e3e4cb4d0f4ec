"""Ramp schedules."""

import math
from collections.abc import Callable, Mapping
from typing import Any

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


Setting = float | Mapping[str, Any]
"""A number, or one that changes over the fit: ``{from: 4.0, to: 1.0, begin: 0.0, end: 1.0, shape: linear}``."""


def value_at(setting: Setting, progress: float) -> float:
    """Return what a setting is worth when a share ``progress`` of the fit is done.

    Example:
        >>> value_at({"from": 4.0, "to": 1.0}, 0.5)
        2.5
    """
    if not isinstance(setting, Mapping):
        return float(setting)
    when = {"begin": setting.get("begin", 0.0), "end": setting.get("end", 1.0), "shape": setting.get("shape", "linear")}
    first, last = float(setting["from"]), float(setting["to"])
    return first + (last - first) * ramp(progress, **when)


def check_setting(key: str, setting: Any) -> list[float]:
    """Return the values that a setting moves between, one if it stays.

    Raises:
        UserError: if it is no number, or a schedule with unknown or missing keys or times out of range.
    """
    if not isinstance(setting, Mapping):
        if isinstance(setting, bool) or not isinstance(setting, int | float) or not math.isfinite(setting):
            raise UserError(f"{key}={setting!r}, expected a finite number, or {{from: …, to: …}}")
        return [float(setting)]
    known = ("from", "to", "begin", "end", "shape")
    for name in setting:
        if name not in known:
            raise UserError(f"{key}.{name} is no part of a schedule; {did_you_mean(str(name), known)}")
    if missing := [name for name in ("from", "to") if name not in setting]:
        raise UserError(f"{key}: a schedule needs from and to, {' and '.join(missing)} is missing")
    for name in ("from", "to", "begin", "end"):
        value = setting.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{key}.{name}={value!r}, expected a finite number")
    check_ramp(begin=setting.get("begin", 0.0), end=setting.get("end", 1.0), shape=str(setting.get("shape", "linear")))
    return [float(setting["from"]), float(setting["to"])]
