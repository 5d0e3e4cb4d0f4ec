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
    """Tell nobody."""


class Stages:
    """The stages of long work, reported as they begin and continue, with the share of all its time that has passed.

    What is left is what is known of it, and for every other stage the mean of those that are done.

    Args:
        on_progress: is called.
        count: how many stages there are whose length is not known.
        known: seconds of all others together.

    Example:
        >>> stages = Stages(lambda stage, done: print(stage), 2)
        >>> stages("read")
        read
    """

    def __init__(self, on_progress: ProgressCallback, count: int, *, known: float = 0.0) -> None:
        self._say, self._count, self._known = on_progress, count, known
        self._begun = self._stage_begun = time.monotonic()
        self._name, self._seconds = "", 0.0  # of the present stage, if it is known how long that is
        self._finished, self._spent, self._told = -1, 0.0, 0.0

    def __call__(self, name: str, *, seconds: float = 0.0) -> None:
        """Begin the next stage; ``seconds`` is how long it takes, where that is known."""
        now = time.monotonic()
        if self._seconds:
            self._known -= self._seconds
        else:
            self._finished += 1
            self._spent += now - self._stage_begun
        self._stage_begun, self._name, self._seconds = now, name, seconds
        self.part(0.0)

    def part(self, share: float) -> None:
        """Tell how far this stage is, in [0, 1]."""
        now = time.monotonic()
        passed, left = now - self._stage_begun, self._known - self._seconds * share
        finished, spent, count = self._finished, self._spent, float(self._count - self._finished)
        if not self._seconds and share > 0:
            finished, spent, count = finished + 1, spent + passed / share, count - share
        left = max(left, 0.0) + max(count, 0.0) * spent / finished if finished > 0 else float("inf")
        past = now - self._begun
        self._told = max(self._told, past / (past + left) if past + left else 0.0)
        self._say(self._name, self._told)

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of which this stage consists; where nobody knows how many there are, in silence."""
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
