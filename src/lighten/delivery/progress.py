"""Progress of long work: a bar with the remaining time in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

ProgressCallback = Callable[[str, float], None]
"""Called by long work with what it is at, and the share of all of it that is done, in [0, 1]."""


def ignore_progress(stage: str, done: float) -> None:
    """Do nothing."""


class Stages:
    """The stages of long work, with the share of them that is done.

    Args:
        on_progress: is called as a stage begins, and as it continues.
        count: how many stages there are.

    Example:
        >>> stages = Stages(lambda stage, done: print(stage, done), 2)
        >>> stages("read")
        read 0.0
        >>> stages("write")
        write 0.5
    """

    def __init__(self, on_progress: ProgressCallback, count: int) -> None:
        self._on_progress, self._count = on_progress, count
        self._name, self._finished = "", -1

    def __call__(self, name: str) -> None:
        """Begin the next stage."""
        self._name, self._finished = name, self._finished + 1
        self.part(0.0)

    def part(self, share: float) -> None:
        """Report how far this stage is, in [0, 1]."""
        self._on_progress(self._name, min((self._finished + share) / self._count, 1.0))

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of which this stage consists; reports nothing where their number is not known."""
        try:
            count = len(items)  # type: ignore[arg-type]
        except TypeError:
            count = 0
        for number, item in enumerate(items, start=1):
            yield item
            if count:
                self.part(number / count)


@contextmanager
def progress(title: str, console: "Console", *, ticks: bool = True) -> Iterator[ProgressCallback]:
    """Show how far the work of this block is: give what is yielded to it as ``on_progress``.

    In a terminal that is a bar with the remaining time, which is gone at the end; elsewhere one line a stage, without
    control characters.

    Args:
        title: in front of each stage, such as ``export``.
        console: where to.
        ticks: whether the bar moves on between two calls, in a thread: not beside what is being timed.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(title, console)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TaskProgressColumn(),
        TimeRemainingColumn(compact=True), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, auto_refresh=ticks, speed_estimate_period=1e6) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda stage, done: bar.update(task, description=f"{title} {stage}", completed=done, refresh=not ticks)


def _lines(title: str, console: "Console") -> ProgressCallback:
    begun, shown = time.monotonic(), ""

    def on_progress(stage: str, done: float) -> None:
        nonlocal shown
        if stage != shown:
            shown, passed = stage, time.monotonic() - begun
            left = f" (about {passed * (1 - done) / done:.0f} s left)" if done else ""
            console.print(f"{title} {stage}{left} …", markup=False, highlight=False, soft_wrap=True)

    return on_progress
