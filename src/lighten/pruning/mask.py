"""Masking of pruned channels in place."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.attributes import check_attributes
from lighten.pruning.live import remaining
from lighten.pruning.norms import choose_paths_, leave_out_, restore_
from lighten.pruning.plan import OF_MODULES, Cut, Plan
from lighten.pruning.tensors import tensors_of
from lighten.pruning.weights import layer_of
from lighten.utils.modules import refuse_unfit


@torch.no_grad()
def mask_(model: nn.Module, plan: Plan) -> None:
    """Zero the removed channels: their filters, biases and norms, and the weights of the next layers that read them.

    Removed channels then affect neither the output nor the weight ranges of layers that read them. Channels that a fit
    with ``live=True`` has already cut are left out.

    Raises:
        UserError: if ``plan`` was made for a model of other shapes, such as this model before it was cut.

    Example:
        >>> from torch import nn, randn
        >>> from lighten.pruning import plan_pruning
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask_(model, plan_pruning(model, randn(1, 4), amount=0.5))
        >>> int((model[0].weight == 0).all(dim=1).sum()), int((model[2].weight == 0).all(dim=0).sum())
        (4, 4)
    """
    model = part_of(model, plan)
    plan = remaining(model, plan)
    check_fits(model, plan)
    for tensor, dim, cut in masked(model, plan):
        tensor.index_fill_(dim, torch.tensor(cut.removed, device=tensor.device), 0)
    mask_norms_(model, plan)


def part_of(model: nn.Module, plan: Plan) -> nn.Module:
    """Return what the plan speaks of: ``model``, or the part of it that the plan was made for."""
    known = tensors_of(model)
    slots = (slot for cut in plan.cuts for slot in cut.slots if slot.role not in OF_MODULES)
    if not plan.part or all(slot.tensor in known for slot in slots):
        return model
    return dict(model.named_modules()).get(plan.part, model)


def mask_norms_(model: nn.Module, plan: Plan) -> None:
    """Leave the removed channels out of the statistics of norms over channels, and no others."""
    tensors = tensors_of(model)
    removed = {id(tensors[slot.tensor]): cut for cut in plan.cuts for slot in cut.slots if slot.role == "norm"}
    whole = {id(module): (cut, dim) for module, dim, cut in whole_norms(model, plan)}
    for module in model.modules():
        cuts = [(removed[id(own)], None) for own in module._parameters.values() if id(own) in removed]
        cut, dim = whole.get(id(module)) or next(iter(cuts), (None, None))
        restore_(module) if cut is None else leave_out_(module, cut.removed, cut.size, dim)
    choose_paths_(model)


def whole_norms(model: nn.Module, plan: Plan) -> Iterator[tuple[nn.Module, int, Cut]]:
    """Yield the norms that run as wholes on the channels that are left: module, dimension of its input, positions."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for cut in plan.cuts:
        for slot in cut.slots:
            if slot.role == "live":
                yield modules[slot.tensor], slot.dim, cut


class Masks:
    """Masks on the device of the weights, for a fit that zeroes the same places after every step.

    They follow the weights: a trainer brings those back to the CPU before it says that the fit has ended.

    Args:
        model: whose parameters are masked.
        plan: fits the model.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, plan: Plan) -> None:
        masks: dict[int, tuple[Tensor, Tensor]] = {}
        for tensor, dim, cut in masked(model, plan):
            mask = masks.setdefault(id(tensor), (tensor, torch.ones_like(tensor, requires_grad=False)))[1]
            mask.index_fill_(dim, torch.tensor(cut.removed, device=tensor.device), 0)
        self._tensors = [tensor for tensor, _ in masks.values()]
        self._masks = [mask for _, mask in masks.values()]

    @torch.no_grad()
    def apply_(self) -> None:
        """Zero the masked places again."""
        if self._tensors and self._tensors[0].device != self._masks[0].device:
            self._masks = [mask.to(tensor.device) for mask, tensor in zip(self._masks, self._tensors, strict=True)]
        if self._tensors:
            torch._foreach_mul_(self._tensors, self._masks)


@torch.no_grad()
def mask_filters_(model: nn.Module, plan: Plan) -> None:
    """Zero the removed channels' filters and biases alone, so that gradients can revive them.

    Source: He et al., Soft Filter Pruning, IJCAI 2018 (arXiv 1808.06866).
    """
    for tensor, dim, cut in masked(model, plan, roles=("filter", "bias")):
        tensor.index_fill_(dim, torch.tensor(cut.removed, device=tensor.device), 0)


ZEROED = ("filter", "bias", "norm", "shift", "scale", "input")


def masked(model: nn.Module, plan: Plan, *, roles: Collection[str] = ZEROED) -> Iterator[tuple[Tensor, int, Cut]]:
    """Yield what is zeroed: parameter, dimension, positions."""
    tensors = tensors_of(model)
    for cut in plan.cuts:
        for slot in cut.slots:
            if slot.role in roles:
                yield tensors[slot.tensor], slot.dim, cut


def check_fits(model: nn.Module, plan: Plan) -> None:
    """Check that ``plan`` speaks of this very model, in the shape that was planned.

    Raises:
        UserError: naming the first layer that does not match.
    """
    refuse_unfit(model)
    tensors = tensors_of(model)
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for cut in plan.cuts:
        for slot in cut.slots:
            if slot.role in OF_MODULES and slot.tensor in names:
                continue
            shape = tuple(tensors[slot.tensor].shape) if slot.tensor in tensors else None
            if shape is None or len(shape) <= slot.dim or shape[slot.dim] != cut.size:
                given = f"has shape {shape}" if shape is not None else "is missing"
                raise UserError(
                    f"layer {layer_of(slot.tensor)!r} does not match the plan: {slot.tensor} {given}, expected "
                    f"{cut.size} in dimension {slot.dim}; give the model that was planned, before it is cut"
                )
    check_attributes(model, plan.attributes)
