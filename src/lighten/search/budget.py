"""Budget of a search: how it is shared out, and when a trial is given up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lighten.errors import UserError
from lighten.search.needs import Budget, Needs, percent

FIRST, NEXT = 0.4, 0.2
"""Shares of all training that the first fine-tune gets, and each that follows."""
LEAST, MOST = 0.25, 60.0
"""Epochs of one fine-tune."""
FEWEST = 5
"""Optimizer steps of one fine-tune."""
KEPT = 0.08
"""Share of the time that is kept for the end."""
A_TRIAL = 2.0
"""Of the original's export and measurement, what a trial after training takes beside."""
SLACK = 0.02
"""How much worse than needed a trial must be foreseen to be before it is given up."""


@dataclass(frozen=True)
class Allotment:
    """How training is shared out.

    Attributes:
        first: epochs of the first fine-tune.
        next: of each that follows, from weights that are trained already.
        epochs: of all of them; ``None`` where only time counts.
        seconds: of all of it; ``None`` where only epochs count.
        least: epochs that a fine-tune needs to have some steps.
    """

    first: float
    next: float
    epochs: float | None
    seconds: float | None
    least: float = LEAST

    @classmethod
    def of(cls, budget: Budget, pace: float, elapsed: float, overhead: float, *, steps: int) -> "Allotment":
        """Share a budget out.

        Args:
            budget: as given.
            pace: seconds per epoch, foreseen.
            elapsed: seconds that have gone.
            overhead: seconds that a trial takes beside its fit.
            steps: of an epoch.
        """
        if budget.epochs is not None:
            whole = budget.epochs
        else:
            assert budget.seconds is not None
            left = budget.seconds * (1 - KEPT) - elapsed - 3 * overhead
            whole = max(0.0, left) / max(1e-6, pace)
        least = max(LEAST, math.ceil(100 * FEWEST / steps) / 100)
        first, further = (max(least, _rounded(share * whole)) for share in (FIRST, NEXT))
        return cls(first, further, budget.epochs, budget.seconds, least)

    @property
    def sentence(self) -> str:
        """How, for people."""
        return (
            f"the first fine-tune has {self.first:g} epochs, each that follows {self.next:g}: it begins with weights "
            "that are trained already"
        )

    def fits(self, wanted: float, spent: float, elapsed: float, overhead: float, pace: float) -> float | None:
        """Return how many epochs the next fine-tune may have, at most ``wanted``; ``None`` where too little is left."""
        left = float("inf")
        if self.epochs is not None:
            left = self.epochs - spent
        if self.seconds is not None:
            left = min(left, (self.seconds * (1 - KEPT) - elapsed - overhead) / max(1e-6, pace))
        if left < self.least:
            return None
        return wanted if wanted <= left else (_rounded(left) or None)


def check_epochs(budget: Budget) -> None:
    """Raise ``UserError`` where a budget of epochs does not reach for one fine-tune."""
    if budget.epochs is not None and budget.epochs < LEAST:
        raise UserError(
            f"budget of {budget.epochs:g} epochs: too small for one trial, which takes {LEAST:g} of one or more; give "
            "some epochs"
        )


def check_time(budget: Budget, taken: float) -> None:
    """Raise ``UserError`` where a budget of time does not reach for one trial.

    Args:
        budget: as given.
        taken: seconds that export and measurement of the original took.
    """
    least = taken * (1 + A_TRIAL)
    if budget.seconds is not None and budget.seconds < least:
        raise UserError(
            f"budget of {budget.seconds:.3g} s: too small for one trial, which takes about {math.ceil(least)} s with "
            "the original's export; give at least that, and minutes for fine-tunes"
        )


def _rounded(epochs: float) -> float:
    """Return whole epochs from one on, else a share of one; never more."""
    epochs = min(MOST, epochs)
    return float(int(epochs)) if epochs >= 1 else int(100 * epochs) / 100


def hopeless(
    drops: Sequence[float], done: int, total: int, needs: Needs, *, left: float | None, pace: float
) -> str | None:
    """Return why a fine-tune is given up, or ``None``.

    Args:
        drops: on the guide part, after each epoch of this part of the fit.
        done: epochs.
        total: of the fit.
        needs: resolved.
        left: seconds of the budget, where it is one of time.
        pace: seconds per epoch of this fit.
    """
    to_come = total - done
    if not to_come:
        return None
    if left is not None and left < 0.7 * to_come * pace:
        return (
            f"it would not end within the budget: {to_come} epochs of {pace:.0f} s are left, and {max(0.0, left):.0f} s"
        )
    if needs.max_drop is None or len(drops) < 3 or done < 0.75 * total:
        return None
    gain = max(0.0, *(a - b for a, b in zip(drops[-3:], drops[-2:], strict=False)))
    foreseen = drops[-1] - gain * to_come
    slack = max(SLACK, 2 * needs.max_drop)
    if foreseen > needs.max_drop + slack:
        return f"after {done} of {total} epochs the drop is {percent(drops[-1])}, and {percent(foreseen)} is foreseen"
    return None
