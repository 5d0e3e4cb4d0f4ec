"""Needs and budget of a search: what people say, checked, in one unit each."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lighten.errors import UserError, did_you_mean, shown
from lighten.utils.checks import check_one_of, check_whole
from lighten.utils.targets import TARGETS

FIGURES = ("latency_ms", "bytes", "macs", "parameters")
"""What a target may limit."""
CONDITIONS = ("batch", "threads", "runtime")
"""Under which latency is measured."""
DEFAULT_DROP = 0.01
"""Where nothing is said: one point of a metric that is a share."""

_SCALES: dict[str, dict[str, float]] = {
    "latency_ms": {"": 1, "ms": 1, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "bytes": {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "macs": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9},
    "parameters": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
}
_EXAMPLES = {"latency_ms": "2.0", "bytes": "'500 kB'", "macs": "'20 M'", "parameters": "'100 k'"}
_WORDED = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "m": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600}
_EPOCHS = ("epoch", "ep")


@dataclass(frozen=True)
class Needs:
    """What a compressed network must meet; ``None`` for what is not asked.

    Attributes:
        max_drop: at most this much may be lost, a share, as :meth:`lighten.tasks.task.Task.drop` counts it.
        latency_ms: of one call, in milliseconds.
        batch: samples of that call.
        threads: of that call.
        runtime: that runs it.
        bytes: of the file.
        macs: of one sample.
        parameters: of the network.
        relative: targets that were given as a share of the original's figure, until :meth:`resolved`.
    """

    max_drop: float | None = None
    latency_ms: float | None = None
    batch: int = 1
    threads: int = 1
    runtime: str = "onnx"
    bytes: int | None = None
    macs: float | None = None
    parameters: int | None = None
    relative: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The targets that are known in their own unit, by name."""
        given = {name: getattr(self, name) for name in FIGURES}
        return {name: value for name, value in given.items() if value is not None}

    def resolved(self, original: Mapping[str, float]) -> "Needs":
        """Return the needs with shares of the original's figures in their own unit.

        Args:
            original: its figures by name.

        Raises:
            UserError: if a figure that a share is of is unknown, or the original meets all that is asked.
        """
        found: dict[str, Any] = {}
        for name, share in self.relative.items():
            if not original.get(name):
                raise UserError(f"target {name}={share:.4g} of the original, whose {name} is not known; give a number")
            value = share * original[name]
            found[name] = int(value) if name in ("bytes", "parameters") else value
        needs = replace(self, relative={}, **found)
        limits = needs.limits
        if limits and all(original.get(name, math.inf) <= limit for name, limit in limits.items()):
            has = ", ".join(
                f"{_amount(name, original[name])} where {_amount(name, limits[name])} is asked" for name in limits
            )
            raise UserError(f"target: the original meets it already: {has}; ask for less")
        return needs

    def met_by(self, figures: Mapping[str, float], drop: float, *, called: str = "drop") -> list[str]:
        """Return what a network breaks, a clause each; nothing where it meets all.

        Args:
            figures: of the network, by name; one that is missing breaks its limit.
            drop: from the original.
            called: how a clause calls it, where it is more than a drop that was measured.
        """
        broken = []
        if self.max_drop is not None and not drop <= self.max_drop:
            broken.append(f"{called} {percent(drop)}, need at most {percent(self.max_drop)}")
        for name, limit in self.limits.items():
            value = figures.get(name)
            if value is None:
                broken.append(f"{name} not measured, need at most {_amount(name, limit)}")
            elif not value <= limit:
                under = f" ({self.conditions})" if name == "latency_ms" else ""
                broken.append(f"{_amount(name, value)}, need at most {_amount(name, limit)}{under}")
        return broken

    @property
    def conditions(self) -> str:
        """How latency is measured, in words."""
        return f"{self.runtime}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def __str__(self) -> str:
        asked = [] if self.max_drop is None else [f"drop at most {percent(self.max_drop)}"]
        asked += [f"{_amount(name, limit)} at most" for name, limit in self.limits.items()]
        asked += [f"{name} at most {percent(share)} of the original's" for name, share in self.relative.items()]
        timed = "latency_ms" in self.limits or "latency_ms" in self.relative
        return ", ".join(asked) + (f" ({self.conditions})" if timed else "")


@dataclass(frozen=True)
class Budget:
    """What a search may take; ``None`` for what is not limited.

    Attributes:
        seconds: of wall-clock time.
        epochs: of training, over all trials.
    """

    seconds: float | None = None
    epochs: float | None = None


def needs_of(max_drop: float | str | None = None, target: Mapping[str, Any] | None = None) -> Needs:
    """Return what is asked for; one point where nothing is.

    Args:
        max_drop: a share such as 0.01, or ``"1%"``.
        target: limits by name: ``latency_ms`` (with ``batch``, ``threads`` and ``runtime``), ``bytes``, ``macs``,
            ``parameters``; numbers, texts with a unit such as ``"500 kB"``, or ``"50%"`` of the original.

    Raises:
        UserError: if something cannot be read, is out of range, or has no effect.

    Example:
        >>> needs_of("2%", {"latency_ms": 2.0, "threads": 2}).max_drop
        0.02
    """
    if target is not None and not isinstance(target, Mapping):
        raise UserError(f"target={shown(repr(target))}: expected limits by name, as target={{'latency_ms': 2.0}}")
    target = dict(target or {})
    for name in target:
        check_one_of("target", name, [*FIGURES, *CONDITIONS])
    given: dict[str, Any] = {}
    relative: dict[str, float] = {}
    for name in FIGURES:
        if target.get(name) is not None:
            value, share = _read(name, target[name])
            (relative if share else given)[name] = (
                int(value) if not share and name in ("bytes", "parameters") else value
            )
    conditions = {name: target[name] for name in CONDITIONS if target.get(name) is not None}
    if conditions and "latency_ms" not in (*given, *relative):
        names = ", ".join(conditions)
        raise UserError(f"target: {names} without latency_ms has no effect; give latency_ms, or leave {names} out")
    for name in ("batch", "threads"):
        if name in conditions:
            check_whole(f"target {name}", conditions[name], 1)
    if "runtime" in conditions:
        check_one_of("target runtime", conditions["runtime"], TARGETS)
    drop = None if max_drop is None else _read_drop(max_drop)
    if drop is None and not given and not relative:
        drop = DEFAULT_DROP
    return Needs(max_drop=drop, relative=relative, **conditions, **given)


def budget_of(given: str | float | None) -> Budget:
    """Return what a search may take: ``"20 min"``, ``"90s"``, ``"1 h 30 min"``, ``"12 epochs"``, or minutes.

    Raises:
        UserError: if it cannot be read, or is not above zero.
    """
    if given is None:
        return Budget()
    problem = UserError(f"budget={shown(repr(given))}: expected a time as '20 min' or '2 h', '12 epochs', or minutes")
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise problem
    parts = re.findall(r"([^\sa-zA-Z]+)\s*([a-zA-Z]*)", str(given).strip())
    if re.sub(r"\s", "", str(given)) != "".join(number + unit for number, unit in parts) or not parts:
        raise problem
    seconds = epochs = 0.0
    for number, unit in parts:
        try:
            value = float(number)
        except ValueError:
            raise problem from None
        if not (math.isfinite(value) and value >= 0):
            raise problem
        name = unit.lower() or ("min" if len(parts) == 1 else "")
        name = name[:-1] if name.endswith("s") and name != "s" else name
        if name in _EPOCHS:
            epochs += value
        elif name in _SECONDS:
            seconds += value * _SECONDS[name]
        else:
            raise problem
    if seconds and epochs:
        raise UserError(f"budget={shown(repr(given))}: says a time and epochs, expected one of them")
    if not seconds and not epochs:
        raise UserError(f"budget={shown(repr(given))}: nothing can be tried in it, expected more than zero")
    return Budget(seconds or None, epochs or None)


def percent(share: float) -> str:
    """Return a share for people: ``"1.25 %"``."""
    return f"{100 * share:.3g} %"


def _read_drop(given: float | str) -> float:
    if isinstance(given, str):
        number, unit = _parted(given, "max_drop", "0.01 or '1%'")
        if unit not in ("", "%"):
            raise UserError(f"max_drop={shown(repr(given))}: expected a share, as 0.01 or '1%'")
        value = number / 100 if unit else number
    else:
        value = _number(given, "max_drop", "0.01 or '1%'")
    if not 0 <= value < 1:
        meant = f"; did you mean '{value:g}%'?" if 1 <= value <= 100 and "%" not in str(given) else ""
        raise UserError(f"max_drop={given}: expected a share from 0 to below 1, as 0.01 or '1%'{meant}")
    return value


def _read(name: str, given: Any) -> tuple[float, bool]:
    """Return a limit, and whether it is a share of the original's figure."""
    example = f"{_EXAMPLES[name]} or '50%'"
    unit = ""
    if isinstance(given, str):
        value, unit = _parted(given, f"target {name}", example)
    else:
        value = _number(given, f"target {name}", example)
    if not value > 0:
        raise UserError(f"target {name}={given}: cannot be met, expected more than zero, as {example}")
    if unit == "%":
        if value >= 100:
            raise UserError(f"target {name}={given}: the original has 100 %; ask for less")
        return value / 100, True
    scales = _SCALES[name]
    if unit not in scales:
        raise UserError(
            f"target {name}={shown(repr(given))}: unit {unit!r}; {did_you_mean(unit, [s for s in scales if s])}"
        )
    value *= scales[unit]
    if name in ("bytes", "parameters") and value < 1:
        raise UserError(f"target {name}={given}: cannot be met, expected 1 or more, as {example}")
    return value, False


def _parted(given: str, key: str, example: str) -> tuple[float, str]:
    match = _WORDED.fullmatch(given)
    if match is None:
        raise UserError(f"{key}={shown(repr(given))}: cannot be read, expected {example}")
    return _number(float(match[1]), key, example), match[2].lower()


def _number(given: Any, key: str, example: str) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{key}={shown(repr(given))}: expected a number, as {example}")
    return value


def _amount(name: str, value: float) -> str:
    if name == "latency_ms":
        return f"latency {value:.3g} ms"
    if name == "bytes":
        for scale, unit in ((1e6, "MB"), (1e3, "kB")):
            if value >= scale:
                return f"file {value / scale:.3g} {unit}"
        return f"file {value:.0f} bytes"
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit} {'MACs' if name == 'macs' else name}"
    return f"{value:.0f} {'MACs' if name == 'macs' else name}"
