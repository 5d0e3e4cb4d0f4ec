"""Importance scores of a group's channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import UserError
from lighten.pruning import score as formulas
from lighten.pruning.groups import Group

BY_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "fpgm": formulas.fpgm,
    "magnitude": formulas.magnitude,
    "l1": formulas.l1,
}


@dataclass(frozen=True)
class GroupScores:
    """The scores of a group's live channels.

    Attributes:
        scores: (live,), float32, on the CPU.
        norms: L2 norms of the same channels.
        score: the criterion that was used.
        why: the reason, where there was a choice.
        blind: nothing is known of any channel, so that none may go.
    """

    scores: Tensor
    norms: Tensor
    score: str
    why: str = ""
    blind: bool = False


NO_GRADIENT = "no gradient says which of its channels matter"
EQUAL = "all alike, drawn at random"


def score_group(
    group: Group,
    tensors: Mapping[str, Tensor],
    live: Tensor,
    *,
    score: str,
    rate_norm: float,
    accumulated_gradients: Mapping[str, Tensor] | None = None,
) -> GroupScores:
    """Score the channels ``live`` of ``group``.

    Args:
        group: its filters of all layers count, side by side.
        tensors: the model's parameters by name.
        live: indices of the channels that are not gone yet.
        score: a name of :data:`~lighten.pruning.settings.SCORES`.
        rate_norm: see :func:`~lighten.pruning.score.mix`.
        accumulated_gradients: first-order scores by group, summed over optimizer steps; nothing is known yet of a group
            that is not there. ``None`` takes them from the weights' gradients.

    Raises:
        UserError: if weights or scores are not finite, or gradients are wanted and there are none.
    """
    whole = group.filters(tensors)
    if not torch.isfinite(whole).all():
        raise UserError(f"the weights of {', '.join(group.layers)} are not finite; lower the learning rate")
    filters = whole[live.to(whole.device)]
    norms = formulas.magnitude(filters).cpu()
    used, why = _choose(score, group, norms)
    if used in BY_FILTERS:
        found = BY_FILTERS[used](filters)
    elif used == "mix":
        found = formulas.mix(filters, rate_norm=rate_norm, gone=group.width - len(live))
    elif used == "bn_scale":
        found = _norm_scales(group, tensors)[live.to(whole.device)]
    elif used == "taylor":
        found = _first_order(group, tensors, accumulated_gradients)[live.to(whole.device)]
    else:
        found = formulas.random(group.width, name=group.name)[live]
    scores = found.float().cpu()
    if not torch.isfinite(scores).all():
        raise UserError(f"score={used!r} of {', '.join(group.layers)} is not finite; use another score")
    if used == "taylor" and not scores.any():
        trained = any(tensors[slot.tensor].requires_grad for slot in group.positions if slot.role == "filter")
        known = accumulated_gradients is None or group.name in accumulated_gradients or not trained
        return GroupScores(scores, norms, used, NO_GRADIENT if known else "", blind=known)
    alike = len(scores) > 1 and bool((scores == scores[0]).all())
    return GroupScores(scores, norms, used, "; ".join(filter(None, (why, EQUAL if alike else ""))))


def first_order(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return :func:`~lighten.pruning.score.taylor` of all channels, from the gradients that the weights hold.

    Weights without a gradient, such as frozen ones, and channels whose gradient is not finite, count as zero.
    """
    own = {slot.tensor: tensors[slot.tensor] for slot in group.positions if slot.role == "filter"}
    gradients = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in own.items()}
    found = formulas.taylor(group.filters(own), group.filters(gradients))
    return torch.where(found.isfinite(), found, 0.0)


def _choose(score: str, group: Group, norms: Tensor) -> tuple[str, str]:
    if score == "auto":
        found = formulas.conditions(norms)
        return ("magnitude" if found.rank_well else "fpgm"), str(found)
    if score == "bn_scale" and not any(slot.role == "norm" for slot in group.positions):
        return "magnitude", "no norm follows"
    return score, ""


def _norm_scales(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the summed absolute scales of the norms that follow (Liu et al., ICCV 2017, arXiv 1708.06519)."""
    scales = [
        tensors[slot.tensor].detach().abs().float()[index.to(tensors[slot.tensor].device)].sum(dim=1)
        for slot, index in group.positions.items()
        if slot.role == "norm"
    ]
    return torch.stack(scales).sum(dim=0)


def _first_order(
    group: Group, tensors: Mapping[str, Tensor], accumulated_gradients: Mapping[str, Tensor] | None
) -> Tensor:
    if accumulated_gradients is None:
        return first_order(group, tensors)
    found = accumulated_gradients.get(group.name, torch.zeros(group.width))
    return found.to(next(iter(tensors.values())).device)
