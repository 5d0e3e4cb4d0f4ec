"""AveragePrecision: COCO's figure of a detector, matched once and then read for any weights of the pictures."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lighten.tasks.boxes import hits
from lighten.tasks.task import Meaning, PartScores, named

LIMITS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Overlaps from which on a detection is right, 0.5 to 0.95."""
POINTS = 101
"""Recalls at which precision is read, 0 to 1."""
_AT_ONCE = 1 << 22
"""Numbers of weighted detections that are in memory together."""


class AveragePrecision(Metric):
    """COCO's average precision of boxes: mean over classes that have boxes, overlaps 0.5 to 0.95 and 101 recalls.

    Source: Lin et al.: Microsoft COCO, 2014, and its evaluation of all areas with 100 detections a picture.

    A detection is matched in its own picture alone; so what is kept is, of each one, its odds, its class and at which
    limits it is right, and the classes of the boxes there are. From these :meth:`weighted` reads the figures of
    pictures drawn again and again, each as often as its weight says.

    Args:
        classes: how many.
    """

    full_state_update = False
    higher_is_better = True

    odds: list[Tensor]
    kinds: list[Tensor]
    right: list[Tensor]
    counts: list[Tensor]
    boxes: list[Tensor]
    box_counts: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        for name in ("odds", "kinds", "right", "counts", "boxes", "box_counts"):
            self.add_state(name, [], dist_reduce_fx="cat")  # flat float32 all, which ranks without any can gather too

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Add pictures.

        Args:
            rows: detections as :func:`lighten.tasks.boxes.found` returns them.
            labels: (batch, most, 5).
        """
        there, boxes = rows[..., 0] >= 0, labels[..., 0] >= 0
        bits = 2 ** torch.arange(len(LIMITS), device=rows.device)
        self.odds.append(rows[..., 5][there].float())
        self.kinds.append(rows[..., 0][there].float())
        self.right.append((hits(rows, labels, LIMITS) * bits).sum(-1)[there].float())
        self.counts.append(there.sum(1).float())
        self.boxes.append(labels[..., 0][boxes].float())
        self.box_counts.append(boxes.sum(1).float())

    def compute(self) -> dict[str, Tensor]:
        """Return ``map``, ``map_50`` and ``map_75``; zero where no picture has a box."""
        weights = torch.ones(1, len(_joined(self.counts)), dtype=torch.float64)
        return {name: value[0].nan_to_num(0.0) for name, value in self.weighted(weights).items()}

    def weighted(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the figures for each row of weights, float64 (draws, pictures); NaN where none has a box.

        Whole weights give what the pictures give that are there so often.
        """
        each = self.by_class(weights)
        at = {limit: each[:, i].nanmean(-1) for i, limit in enumerate(LIMITS)}
        return {"map": each.flatten(1).nanmean(-1), "map_50": at[0.5], "map_75": at[0.75]}

    def by_class(self, weights: Tensor) -> Tensor:
        """Return the average precision, (draws, limits, classes), for rows of weights; NaN of a class without boxes."""
        odds, kinds, right, counts, boxes, box_counts = (
            _joined(x) for x in (self.odds, self.kinds, self.right, self.counts, self.boxes, self.box_counts)
        )
        pictures = torch.arange(len(counts))
        of, of_box = pictures.repeat_interleave(counts.long()), pictures.repeat_interleave(box_counts.long())
        values = torch.full((len(weights), len(LIMITS), self.classes), torch.nan, dtype=torch.float64)
        for kind in boxes.unique().long().tolist():
            there = (boxes == kind).double()
            totals = weights @ torch.zeros(len(counts), dtype=torch.float64).index_add(0, of_box, there)
            mine = (kinds == kind).nonzero()[:, 0]
            mine = mine[odds[mine].argsort(descending=True, stable=True)]
            size = max(1, _AT_ONCE // max(1, len(mine)))
            parts = zip(weights.split(size), totals.split(size), strict=True)
            found = [_average(part, of[mine], right[mine].long(), total) for part, total in parts]
            values[..., kind] = torch.cat(found)
        return values

    def seen(self) -> Tensor:
        """Return all that figures come from, one row of numbers, by which two networks are compared."""
        return torch.cat([_joined(x) for x in (self.counts, self.odds, self.kinds, self.right)])


def _average(weights: Tensor, pictures: Tensor, right: Tensor, totals: Tensor) -> Tensor:
    """Return the average precision of one class, (draws, limits).

    What is wrong counts through the rank of what is right alone: behind the last right one nothing matters.

    Args:
        weights: (draws, pictures).
        pictures: of each detection, the likeliest first.
        right: of each detection, a bit a limit.
        totals: weight of the boxes there are, (draws,).
    """
    some = right.nonzero()[:, 0]
    last = int(some[-1]) + 1 if len(some) else 0
    ranks = weights.index_select(1, pictures[:last]).cumsum(1)
    asked = torch.from_numpy(np.linspace(0, 1, POINTS))  # torch's own differs in the last bit, which recalls may hit
    recalls = asked.expand(len(weights), -1).contiguous()
    values = []
    for limit in range(len(LIMITS)):
        at = ((right[:last] >> limit) & 1).nonzero()[:, 0]
        hit = weights.index_select(1, pictures[at]).cumsum(1)
        precision = hit / ranks.index_select(1, at).clamp_min(1e-12)
        best = precision.flip(1).cummax(1).values.flip(1) if len(at) else precision
        place = torch.searchsorted((hit / totals[:, None]).nan_to_num(0.0), recalls)
        values.append(F.pad(best, (0, 1)).gather(1, place).mean(1))
    found = torch.stack(values, 1)
    return torch.where(totals[:, None] > 0, found, torch.nan)


def _joined(values: list[Tensor] | Tensor) -> Tensor:
    """Return a state as one tensor on the CPU; between ranks it is one already."""
    if isinstance(values, Tensor):
        return values.cpu()
    return torch.cat(values).cpu() if values else torch.zeros(0)


class ByClass(PartScores):
    """The average precision of each class.

    Args:
        classes: how many.
        names: of the classes.
    """

    kind, metric, meaning = "class", "map", Meaning("mAP", "percent")

    def __init__(self, classes: int, names: Sequence[str]) -> None:
        self.names = named(names, classes)
        self.measured = AveragePrecision(classes)

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        self.measured.update(answers.cpu(), labels.cpu())

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return each class's average precision; ``None`` for one without boxes."""
        pictures = len(_joined(self.measured.counts))
        each = self.measured.by_class(torch.ones(1, pictures, dtype=torch.float64))[0].mean(0)
        return self.names, [None if v != v else v for v in each.tolist()]
