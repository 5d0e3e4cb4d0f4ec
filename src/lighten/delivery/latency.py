"""Latency of several models side by side, so that what disturbs one disturbs all."""

import gc
import time
from collections.abc import Mapping
from typing import TypedDict, TypeVar

import numpy as np

from lighten.delivery.runner import Runner
from lighten.example import Call, map_tensors

Name = TypeVar("Name", bound=str)

WARM_UP = 3
"""Calls of each model before the clock counts."""


class Latency(TypedDict):
    """Milliseconds of one call."""

    median: float
    p90: float


def interleaved_latency(
    runners: Mapping[Name, Runner],
    batches: Mapping[str, Call],
    *,
    seconds: float = 3.0,
    min_rounds: int = 7,
    max_rounds: int = 2000,
) -> dict[Name, dict[str, Latency]]:
    """Time models call by call in turn: one call of each is a round, and every other round runs backwards.

    Args:
        runners: the models by name.
        batches: what to call them with, by the name of the result, such as ``"batch_1"``.
        seconds: how long each entry of ``batches`` is timed, warm-up and the first ``min_rounds`` aside.
        min_rounds: rounds that are always made.
        max_rounds: rounds after which it ends early.

    Returns:
        ``{model: {batch: {"median": ms, "p90": ms}}}``.
    """
    result: dict[Name, dict[str, Latency]] = {name: {} for name in runners}
    for label, call in batches.items():
        feeds = {name: runner.feed(call) for name, runner in runners.items()}
        for name, runner in runners.items():
            for _ in range(WARM_UP):
                runner.run(feeds[name])
        for name, times in _time(runners, feeds, seconds, min_rounds, max_rounds).items():
            median, p90 = np.percentile(times, [50, 90])
            result[name][label] = {"median": float(median), "p90": float(p90)}
    return result


def batch_of(call: Call, size: int) -> Call:
    """Return the call with ``size`` samples: its first ones, repeated where it has fewer."""
    args, kwargs = map_tensors(
        lambda t: t[[i % len(t) for i in range(size)]].contiguous() if t.ndim else t,
        call,
    )
    return args, kwargs


def _time(
    runners: Mapping[Name, Runner],
    feeds: Mapping[Name, object],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
) -> dict[Name, list[float]]:
    """Return the milliseconds of every call by model."""
    times: dict[Name, list[float]] = {name: [] for name in runners}
    order = list(runners)
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(max_rounds):
            if done >= min_rounds and time.perf_counter() >= end:
                break
            for name in order:
                start = time.perf_counter_ns()
                runners[name].run(feeds[name])
                times[name].append((time.perf_counter_ns() - start) / 1e6)
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return times
