"""Time of a fit that prunes, predicted from a step of the whole and of the cut network."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lighten.pruning.cut import shrink
from lighten.pruning.plan import Plan
from lighten.pruning.settings import PruneSettings
from lighten.pruning.updates import MAX_UPDATES
from lighten.schedule import ramp
from lighten.utils.clone import clone
from lighten.utils.inputs import ExampleInput, as_call

ROUNDS = 5
POINTS = 1000
"""At how many moments of a fit its step is predicted."""


@dataclass(frozen=True)
class FitTime:
    """What steps of the student take, its teacher and its data aside.

    Attributes:
        whole: milliseconds of a step before pruning, or with masks.
        cut: milliseconds of one once all is cut.
        share: how long a fit with cuts takes, of one with masks.
    """

    whole: float
    cut: float
    share: float

    def __str__(self) -> str:
        return (
            f"Predicted: a step of the student {self.whole:.3g} ms, {self.cut:.3g} ms once all is cut; with "
            f"compress.prune.live=true its fit takes {self.share:.0%} of the time with masks, teacher and data aside"
        )


def predict_fit(model: nn.Module, plan: Plan, settings: PruneSettings, batch: ExampleInput) -> FitTime:
    """Return what a fit with cuts saves, from steps of the whole and the cut model that take turns.

    Between the two, time is taken to fall with the square of the widths that are there.

    Args:
        model: left as it is.
        plan: of the whole amount.
        settings: when it goes, and in how many cuts.
        batch: as the fit takes it.
    """
    steps = [_Step(clone(model).train(), batch), _Step(shrink(model, plan).train(), batch)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for taken, step in zip(times, steps, strict=True):
            taken.append(step.run())
    whole, cut = (1000 * median(taken[1:]) for taken in times)
    left = 1.0 - plan.sparsity
    spent = 0.0
    for point in range(POINTS):
        width = 1.0 - plan.sparsity * _cut_at(point / POINTS, settings)
        spent += cut + (whole - cut) * (width**2 - left**2) / max(1.0 - left**2, 1e-9)
    return FitTime(whole, cut, spent / POINTS / whole)


def _cut_at(progress: float, settings: PruneSettings) -> float:
    """Return the share of the amount that has been cut by then: that of the last cut."""
    if progress >= settings.end:
        return 1.0
    found, before = 0.0, 0
    for update in range(1, MAX_UPDATES + 1):
        at = settings.begin + (settings.end - settings.begin) * update / MAX_UPDATES
        now = ramp(at, begin=settings.begin, end=settings.end, shape=settings.schedule)
        if at <= progress and int(now * (settings.cuts + 1) + 1e-9) > before:
            found, before = now, int(now * (settings.cuts + 1) + 1e-9)
    return found


class _Step:
    """One forward and backward pass and an optimizer's step."""

    def __init__(self, model: nn.Module, batch: ExampleInput) -> None:
        self._model, self._call = model, as_call(batch)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def run(self) -> float:
        begun = time.perf_counter()
        outputs: Any = self._model(*self._call[0], **self._call[1])
        self._optimizer.zero_grad()
        learns = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
        torch.stack([x.float().square().mean() for x in learns]).sum().backward()
        self._optimizer.step()
        return time.perf_counter() - begun
