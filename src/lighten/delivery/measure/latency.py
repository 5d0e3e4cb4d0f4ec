"""Latency of several models, measured in turn so that a disturbance reaches all of them."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import TypedDict, TypeVar

import numpy as np

from lighten.delivery.runtimes.runners import Runner
from lighten.utils.inputs import Call, map_tensors

Name = TypeVar("Name", bound=str)

SECONDS = 3.0
"""How long each batch size is timed."""

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
    seconds: float = SECONDS,
    min_rounds: int = 7,
    max_rounds: int = 2000,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[Name, dict[str, Latency]]:
    """Time models call by call in turn: one call of each is a round, and every other round runs backwards.

    Args:
        runners: the models by name.
        batches: what to call them with, by the name of the result, such as ``"batch_1"``.
        seconds: how long each entry of ``batches`` is timed, warm-up and the first ``min_rounds`` aside.
        min_rounds: rounds that are always made.
        max_rounds: rounds after which it ends early.
        tell: called between two rounds, once a second, with the share of the time that has passed.

    Returns:
        ``{model: {batch: {"median": ms, "p90": ms}}}``.
    """
    result: dict[Name, dict[str, Latency]] = {name: {} for name in runners}
    for place, (label, call) in enumerate(batches.items()):
        feeds = {name: runner.feed(call) for name, runner in runners.items()}
        for name, runner in runners.items():
            for _ in range(WARM_UP):
                runner.run(feeds[name])
        share = _Share(tell, place / len(batches), len(batches) * seconds)
        for name, times in _time(runners, feeds, seconds, min_rounds, max_rounds, share).items():
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


class _Share:
    """Tells once a second which share of all timing is done; more often it would disturb what is timed."""

    def __init__(self, tell: Callable[[float], None], done: float, whole: float) -> None:
        self._tell, self._done, self._whole, self._next = tell, done, whole, 1.0

    def after(self, passed: float) -> None:
        """Take the seconds of this batch size that have passed."""
        if passed >= self._next and self._whole > 0:
            self._tell(min(self._done + passed / self._whole, 1.0))
            self._next = passed + 1.0


def _time(
    runners: Mapping[Name, Runner],
    feeds: Mapping[Name, object],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    share: "_Share",
) -> dict[Name, list[float]]:
    """Return the milliseconds of every call by model."""
    times: dict[Name, list[float]] = {name: [] for name in runners}
    order = list(runners)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(max_rounds):
            passed = time.perf_counter() - begin
            if done >= min_rounds and passed >= seconds:
                break
            share.after(passed)
            for name in order:
                start = time.perf_counter_ns()
                runners[name].run(feeds[name])
                times[name].append((time.perf_counter_ns() - start) / 1e6)
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return times
