"""A bar on stderr for work that takes longer than one likes to wait without a word."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed as dist

PATIENCE = 5.0
"""Seconds of silence."""

Report = Callable[[str, float], None]
"""Called with what the work is at, and the share of all of it that is done, in [0, 1]."""

_report: ContextVar[Report | None] = ContextVar("report", default=None)


@contextmanager
def long_work(title: str) -> Iterator[Report]:
    """Show how far the work of this block is, once it has taken :data:`PATIENCE` seconds: report what is yielded.

    Nothing is shown of quicker work, where stderr is no terminal, or on other ranks than zero. Within another such
    block, the other's bar shows it.

    Args:
        title: in front of what is reported, such as ``plan``.

    Example:
        >>> with long_work("plan") as report:
        ...     report("traces the network", 0.0)
    """
    if (outer := _report.get()) is not None:
        yield outer
        return
    bar = _Bar(title)
    token = _report.set(bar.report)
    timer = threading.Timer(PATIENCE, bar.show)
    timer.daemon = True
    if sys.stderr.isatty() and not (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0):
        timer.start()
    try:
        yield bar.report
    finally:
        _report.reset(token)
        timer.cancel()
        bar.hide()


class _Bar:
    """What was reported last; from ``show`` to ``hide`` on the screen."""

    def __init__(self, title: str) -> None:
        self._title, self._last, self._ended = title, ("", 0.0), False
        self._lock = threading.Lock()
        self._update: Report | None = None
        self._stop: Callable[[], None] = lambda: None

    def report(self, stage: str, done: float) -> None:
        self._last = stage, done
        if (update := self._update) is not None:
            update(stage, done)

    def show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        with self._lock:
            if self._ended:
                return
            bar = Progress(*columns, console=Console(stderr=True), transient=True)
            task = bar.add_task(self._title, total=1.0)
            self._stop = bar.stop
            bar.start()
            self._update = lambda stage, done: bar.update(task, description=f"{self._title}: {stage}", completed=done)
            self._update(*self._last)

    def hide(self) -> None:
        with self._lock:
            self._ended = True
            self._update = None
            self._stop()
