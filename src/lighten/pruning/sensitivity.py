"""Sensitivity of a model's outputs to each group."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, allocate
from lighten.pruning.damage import DamageCurve
from lighten.pruning.groups import Structure
from lighten.pruning.mask import mask_
from lighten.pruning.plan import Plan
from lighten.utils.clone import clone
from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import random_state_kept

SHARES = (0.25, 0.5, 0.7, 0.85, 0.95)
"""Shares of a group's channels at which it is measured."""


def measure_sensitivity(
    model: nn.Module,
    structure: Structure,
    candidates: Sequence[Candidate],
    calibration: Sequence[Call],
    *,
    shares: Sequence[float] = SHARES,
    only: Sequence[int] | None = None,
) -> list[DamageCurve]:
    """Return what each group's loss does to the outputs, by forward passes alone.

    The damage is the mean Kullback-Leibler divergence, in nats, of the softmax over the last dimension of the first
    output, from the whole model's to the masked one's; of an output with one value a sample the mean squared
    difference over its variance. The model runs in eval mode, on a copy.

    Args:
        model: as planned.
        structure: of this model.
        candidates: scores of each group; the lowest go first.
        calibration: a few calls of the model.
        shares: shares of a group's channels to mask, rising.
        only: these groups, by index; all by default.

    Returns:
        For each of these groups its curve, from (0, 0) on.

    Raises:
        UserError: if there is no calibration input.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    calls = map_tensors(lambda t: t.to(weight if t.is_floating_point() else weight.device), list(calibration))
    if not calls:
        raise UserError("scope='sensitivity' got no calibration input, expected a few batches that stand for the data")
    with torch.no_grad(), random_state_kept(model):
        whole = [_logits(clone(model).eval(), call) for call in calls]
        curves: list[DamageCurve] = []
        for which in range(len(candidates)) if only is None else only:
            points = [(0.0, 0.0)]
            for share in shares:
                count = _channels_at(candidates[which], share)
                if count / candidates[which].width > points[-1][0]:
                    masked = _masked_copy(model, structure, candidates, which, count)
                    damage = sum(_damage(a, _logits(masked, call)) for a, call in zip(whole, calls, strict=True))
                    points.append((count / candidates[which].width, max(points[-1][1], damage / len(calls))))
            curves.append(points)
    return curves


def _channels_at(candidate: Candidate, share: float) -> int:
    return min(candidate.width - 1, round(share * candidate.width))


def _masked_copy(
    model: nn.Module, structure: Structure, candidates: Sequence[Candidate], which: int, count: int
) -> nn.Module:
    counts = [count if i == which else len(c.gone) for i, c in enumerate(candidates)]
    removed = allocate(candidates, 0.5, counts=counts)
    masked = clone(model).eval()
    mask_(masked, Plan.of_cuts(structure.cuts(removed), structure.example))
    return masked


def _logits(model: nn.Module, call: Call) -> Tensor:
    args, kwargs = map_tensors(torch.Tensor.clone, call)
    output = next(value for value in leaves_of(model(*args, **kwargs)) if isinstance(value, Tensor))
    return output.float().flatten(0, -2) if output.ndim > 1 else output.float()[:, None]


def _damage(whole: Tensor, masked: Tensor) -> float:
    if whole.shape[-1] == 1:
        return float((whole - masked).square().mean() / whole.var().clamp_min(1e-12))
    return float(F.kl_div(masked.log_softmax(-1), whole.log_softmax(-1), log_target=True, reduction="batchmean"))
