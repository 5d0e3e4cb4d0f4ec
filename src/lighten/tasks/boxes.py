"""Boxes: their two forms, how far they overlap, and which of a detector's answers are detections.

A detector answers (batch, places, 4 + classes): a box at each place, centre x, centre y, width and height as shares of
the picture's, then a logit for each class, each a question of its own. Where sides of boxes are meant (``edges``), they
are x0, y0, x1, y1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lighten.tasks.losses import upcast

MOST = 100
"""Detections of a picture that count, as in COCO's protocol."""
CANDIDATES = 5
"""How many times as many are looked at before the weaker ones of the same thing go."""
_AT_ONCE = 8
"""Pictures whose boxes are compared with each other together."""
_TINY = 1e-12


def edges(boxes: Tensor) -> Tensor:
    """Return x0, y0, x1, y1 of boxes (…, 4) given by centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centred(sides: Tensor) -> Tensor:
    """Return centre and size of boxes (…, 4) given by x0, y0, x1, y1."""
    low, high = sides[..., :2], sides[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the intersection over union of boxes x0, y0, x1, y1, (…, 4) against (…, 4): (…)."""
    shared, union = _shared_and_union(ours, theirs)
    return shared / union.clamp_min(_TINY)


def generalised_overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    r"""Return the overlap less the share of the smallest box around both that neither covers, in (-1, 1].

    .. math:: \mathrm{IoU} - \frac{|C| - |A \cup B|}{|C|}

    Source: Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019, algorithm 1.
    """
    shared, union = _shared_and_union(ours, theirs)
    low, high = torch.minimum(ours[..., :2], theirs[..., :2]), torch.maximum(ours[..., 2:], theirs[..., 2:])
    around = (high - low).prod(-1)
    return shared / union.clamp_min(_TINY) - (around - union) / around.clamp_min(_TINY)


def _shared_and_union(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(ours[..., :2], theirs[..., :2]), torch.minimum(ours[..., 2:], theirs[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp_min(0).prod(-1) for x in (ours, theirs)]
    return shared, areas[0] + areas[1] - shared


def kept(sides: Tensor, classes: Tensor, nms: float) -> Tensor:
    """Return which boxes stay, bool (batch, n): a weaker one that overlaps one of its class that stays goes.

    Args:
        sides: (batch, n, 4), x0, y0, x1, y1, the strongest first.
        classes: (batch, n).
        nms: the overlap above which one goes.
    """
    return torch.cat([_kept(*pair, nms) for pair in zip(sides.split(_AT_ONCE), classes.split(_AT_ONCE), strict=True)])


def _kept(sides: Tensor, classes: Tensor, nms: float) -> Tensor:
    beats = (overlap(sides[:, :, None], sides[:, None]) > nms) & (classes[:, :, None] == classes[:, None])
    beats = beats.triu(1)
    stays = torch.ones_like(classes, dtype=torch.bool)
    while True:  # the first n are right after n rounds at most; chains of boxes are short
        now = ~(beats & stays[:, :, None]).any(1)
        if torch.equal(now, stays):
            return stays
        stays = now


def found(answers: Tensor, *, nms: float | None = None, most: int = MOST, least: float = 0.0) -> Tensor:
    """Return detections, (batch, at most ``most``, 6): class, centre x, centre y, width, height, odds.

    A place may be a detection of several classes. The likeliest come first; rows of class -1 and zeros are none.

    Args:
        answers: (batch, places, 4 + classes).
        nms: the overlap above which the weaker of two boxes of a class goes; ``None`` keeps all.
        most: detections of a picture.
        least: odds that a detection has.
    """
    answers = upcast(answers)
    classes = answers.shape[-1] - 4
    logits = answers[..., 4:].flatten(1)
    asked = min(logits.shape[1], most if nms is None else most * CANDIDATES)
    strongest, at = logits.topk(asked)
    boxes = answers[..., :4].gather(1, (at // classes)[..., None].expand(-1, -1, 4))
    kinds, odds = at % classes, strongest.sigmoid()
    there = odds >= least
    if nms is not None:
        there &= kept(edges(boxes), kinds, nms)
    rows = torch.cat([kinds[..., None].to(odds.dtype), boxes, odds[..., None]], -1)
    rows = torch.where(there[..., None], rows, rows.new_tensor([-1.0, 0, 0, 0, 0, 0]))
    first = (~there).to(torch.int8).argsort(stable=True)[:, :most]
    return rows.gather(1, first[..., None].expand(-1, -1, 6))


def detections(
    answers: Tensor, *, nms: float | None = None, most: int = MOST, least: float = 0.0
) -> list[dict[str, Any]]:
    """Return each picture's detections, the likeliest first.

    Args:
        answers: (batch, places, 4 + classes).
        nms: as :func:`found` takes it.
        most: likewise.
        least: likewise.

    Returns:
        A mapping a picture: ``boxes`` (n, 4), x0, y0, x1, y1 as shares of the picture, ``odds`` (n,), ``classes`` (n,).
    """
    each = (rows[rows[:, 0] >= 0] for rows in found(answers, nms=nms, most=most, least=least))
    return [{"boxes": edges(r[:, 1:5]), "odds": r[:, 5], "classes": r[:, 0].long()} for r in each]


def hits(rows: Tensor, labels: Tensor, limits: Sequence[float]) -> Tensor:
    """Return which detections hit a box, bool (batch, n, limits), as COCO's protocol says.

    From the likeliest on, a detection takes the box of its class that it overlaps most among those that are free and
    that it overlaps by the limit or more.

    Args:
        rows: (batch, n, 6), or (batch, n, 5) without odds; the likeliest first; class -1 for none.
        labels: (batch, m, 5) or more, likewise.
        limits: of the overlap.
    """
    least = torch.tensor(limits, dtype=torch.float64, device=rows.device).clamp_max(1 - 1e-10)
    ours, theirs = (edges(x[..., 1:5].double()) for x in (rows, labels))
    near = overlap(ours[:, :, None], theirs[:, None])
    same = (rows[:, :, None, 0] == labels[:, None, :, 0]) & (rows[:, :, None, 0] >= 0)
    near = torch.where(same, near, -1.0)
    right = torch.zeros(*rows.shape[:2], len(least), dtype=torch.bool, device=rows.device)
    numbers = torch.arange(labels.shape[1], device=rows.device)
    free = torch.ones(len(rows), len(least), len(numbers), dtype=torch.bool, device=rows.device)
    for at in (near >= least.min()).flatten(2).any(-1).any(0).nonzero().flatten().tolist():
        fits = free & (near[:, at, None] >= least[:, None])
        best = torch.where(fits, near[:, at, None], -1.0).amax(-1, keepdim=True)
        taken = torch.where(fits & (near[:, at, None] == best), numbers, -1).amax(-1)
        right[:, at] = taken >= 0
        free &= numbers != taken[..., None]
    return right
