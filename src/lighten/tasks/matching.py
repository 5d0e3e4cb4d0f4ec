"""Which place of a detector's answers is taught which box: by what it would cost."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.tasks.boxes import edges, generalised_overlap

CLASS, DISTANCE, OVERLAP = 2.0, 5.0, 2.0
"""Weights of class, distance of the boxes' numbers and overlap, as Zhu et al.: Deformable DETR, 2021, takes them."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal cost: Lin et al.: Focal Loss, 2017, section 4."""


def costs(answers: Tensor, labels: Tensor) -> Tensor:
    """Return what it costs to have each place answer for each box, (batch, places, boxes).

    Args:
        answers: (batch, places, 4 + classes).
        labels: (batch, boxes, 5): class, centre and size; what stands at rows of class -1 has no meaning.
    """
    logits, boxes = answers[..., 4:], answers[..., :4]
    odds = logits.sigmoid()
    yes = ALPHA * (1 - odds) ** GAMMA * -F.logsigmoid(logits)
    no = (1 - ALPHA) * odds**GAMMA * -F.logsigmoid(-logits)
    kinds = labels[..., 0].clamp_min(0).long()[:, None].expand(-1, logits.shape[1], -1)
    theirs = labels[..., 1:5].to(boxes.dtype)
    distance = (boxes[:, :, None] - theirs[:, None]).abs().sum(-1)
    near = generalised_overlap(edges(boxes)[:, :, None], edges(theirs)[:, None])
    return CLASS * (yes - no).gather(2, kinds) + DISTANCE * distance - OVERLAP * near


def matched(cost: Tensor, there: Tensor, matches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return samples, places and boxes that belong together, each int64 (pairs,).

    With one match, each box gets a place of its own such that the sum of costs is least (Kuhn 1955, as Carion et al.:
    DETR, 2020, equation 1, take it). With k it gets its k cheapest places beside that one; a place that several boxes
    want goes to the one for which it is cheapest.

    Args:
        cost: (batch, places, boxes).
        there: bool (batch, boxes), false at rows that hold no box.
        matches: k.
    """
    cost = torch.nan_to_num(cost.detach().float(), nan=1e4).clamp(-1e4, 1e4)
    one = _one_each(cost, there)
    if matches == 1:
        return one
    cost = torch.where(there[:, None], cost, torch.inf)
    cheapest = cost.topk(min(matches, cost.shape[1]), dim=1, largest=False).indices
    wanted = torch.full_like(cost, torch.inf).scatter(1, cheapest, cost.gather(1, cheapest))
    least, box = wanted.min(-1)
    chosen = torch.where(least.isfinite(), box, -1)
    chosen[one[0], one[1]] = one[2]
    samples, places = (chosen >= 0).nonzero(as_tuple=True)
    return samples, places, chosen[samples, places]


def _one_each(cost: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of the least sum, each box with a place of its own."""
    from scipy.optimize import linear_sum_assignment

    samples, places, boxes = [], [], []
    for sample, (each, mask) in enumerate(zip(cost.cpu().numpy(), there.cpu().numpy(), strict=True)):
        columns = mask.nonzero()[0]
        rows, own = linear_sum_assignment(each[:, columns])
        samples += [sample] * len(rows)
        places += rows.tolist()
        boxes += columns[own].tolist()
    sample, place, box = torch.tensor([samples, places, boxes], dtype=torch.int64, device=cost.device)
    return sample, place, box
