"""Optimizer steps at which a gradual pruning removes more channels."""

import bisect
import math
from collections.abc import Mapping
from typing import Any

from lighten.schedule import check_ramp, ramp

MAX_UPDATES = 30
"""How many updates of the plan a ramp has at most."""


class Updates:
    """The updates of a ramp, laid out over a fit whose length may change on the way.

    Args:
        begin: share of the fit's optimizer steps at which the ramp starts.
        end: share at which it is over.
        schedule: its shape, or ``"one_shot"``: all of it at ``begin``.
        repeat: under ``"one_shot"`` choose again at each update until ``end``.

    Attributes:
        start: optimizer steps of the fit before the first of this ramp; ``None`` before the first.
        steps: of the fit, from ``start`` on, by what is known now.
        updated: the last update that was made, or -1.
        ended: whether that was the last one of all.

    Raises:
        UserError: for shares out of range, or an unknown schedule.
    """

    def __init__(self, *, begin: float, end: float, schedule: str, repeat: bool) -> None:
        check_ramp(begin=begin, end=end, shape=schedule)
        self._begin, self._end, self._schedule, self._repeat = begin, end, schedule, repeat
        self.start: int | None = None
        self.updated, self.ended = -1, False
        self.steps: float = 0
        self._due: list[int] = []

    def reached(self, done: int, total: float, *, last: bool = False) -> int | None:
        """Return the update that is to be made now, or ``None``.

        Args:
            done: optimizer steps of the fit that are taken.
            total: all of them, by what is known now.
            last: no step follows, however many were foreseen.
        """
        if self.start is None:
            self.start = done
        if total - self.start != self.steps:
            self.steps = total - self.start
            self._due = self._lay_out()
        taken = bisect.bisect_right(self._due, done - self.start)
        due = self._due[-1] if last else self._due[taken - 1] if taken else -1
        return due if due > self.updated and not self.ended else None

    def ramp_at(self, due: int, before: float) -> float:
        """Return the share of the amount that is removed with update ``due``: at least that of ``before``."""
        if self.is_last(due) or self._schedule == "one_shot":
            return 1.0
        return max(before, ramp(due / self.steps, begin=self._begin, end=self._end, shape=self._schedule))

    def is_last(self, due: int) -> bool:
        """Return whether no update follows."""
        return due == self._due[-1]

    def cuts_at(self, before: float, now: float, due: int, cuts: int) -> bool:
        """Return whether one of ``cuts`` real cuts, or the last one, comes with a ramp from ``before`` to ``now``.

        They lie evenly in what is removed, so that the first steps after a steep ramp are faster already.
        """
        place = lambda ramp: int(ramp * (cuts + 1) + 1e-9)  # noqa: E731
        return self.is_last(due) or place(before) < place(now)

    @property
    def length(self) -> float:
        """Optimizer steps from the start of the ramp to its end, by what is known now."""
        return self._due[-1] - math.floor(self._begin * self.steps) if self._due else math.inf

    def made(self, due: int) -> None:
        """Note that update ``due`` was made."""
        self.updated, self.ended = due, self.is_last(due)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit continues from."""
        return {"updated": self.updated, "ended": self.ended, "from": self.start or 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.updated, self.ended, self.start = state["updated"], state["ended"], state["from"]

    def _lay_out(self) -> list[int]:
        if not math.isfinite(self.steps):
            return []
        first = math.floor(self._begin * self.steps)
        if self._schedule == "one_shot" and not self._repeat:
            return [first]
        updates = update_steps(int(self.steps), begin=self._begin, end=self._end)
        return sorted({first, *updates}) if self._schedule == "one_shot" else updates


def update_steps(steps: int, *, begin: float, end: float, most: int = MAX_UPDATES) -> list[int]:
    """Return the optimizer steps after which more is removed: at most ``most``, evenly spaced, the last at ``end``.

    Args:
        steps: optimizer steps of the whole fit.
        begin: share of the fit at which the ramp starts; nothing is removed there yet.
        end: share at which it is over; at least one step is taken before.
        most: number of updates.
    """
    first, last = math.floor(begin * steps), max(1, round(end * steps))
    count = max(1, min(most, last - first))
    return [last - round((count - i) * (last - first) / count) for i in range(1, count + 1)]
