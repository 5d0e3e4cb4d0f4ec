"""What a fit has cut out of a network while it trained, and the network as it was before.

All plans here speak of the network as it was before the first of these cuts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.pruning.check import drop_cached_tensors_
from lighten.pruning.norms import choose_paths_, restore_
from lighten.pruning.plan import OF_MODULES, Cut, Plan, Slot
from lighten.pruning.tensors import set_data_, tensors_of
from lighten.utils.clone import clone
from lighten.utils.compression import record_, record_of
from lighten.utils.layout import laid_as

STATE_KEY = "cut while it trained (load it after: from lighten import Prune)"
"""The entry of a checkpoint's state dict that holds the plan; where nobody knows it, torch prints it as unexpected."""


@dataclass(frozen=True)
class LiveCut:
    """What a fit has cut out of a network so far, noted in its :class:`~lighten.utils.compression.CompressionRecord`.

    Attributes:
        plan: all of it.
        past: earlier plans of the same fit, the latest first: older checkpoints have those shapes.
        before: what was cut before that fit.
        classes: of modules that have another class now, by name.
        attributes: values before the first cut, by the module's name and their own.
    """

    plan: Plan
    past: tuple[Plan, ...] = ()
    before: Plan | None = None
    classes: Mapping[str, type] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    def layouts(self, model: nn.Module, names: Sequence[str]) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return for layers whose output is narrower now what lays it out as before, with zeros for what is cut.

        For who compares features of ``model``, which is left as it is, by their places.

        Raises:
            UserError: as :func:`~lighten.pruning.layouts.layouts_of`.
        """
        from lighten.pruning.layouts import layouts_of

        return layouts_of(model, self, names)


def live_cut_of(model: nn.Module) -> LiveCut | None:
    """Return what a fit has cut out of ``model``, where one has."""
    found = record_of(model, own=True).live
    return found if isinstance(found, LiveCut) else None


def remaining(model: nn.Module, plan: Plan) -> Plan:
    """Return what of ``plan`` is still to be done to ``model``: all, or what no cut during a fit has done.

    Args:
        model: cut during a fit, or not.
        plan: of the network before these cuts, or of what is there now.
    """
    live = live_cut_of(model)
    return plan if live is None or not _is_of(live.plan, plan) else beyond(plan, live.plan)


def beyond(plan: Plan, done: Plan) -> Plan:
    """Return what ``plan`` removes and ``done`` does not, of the network that ``done`` leaves.

    With it :func:`~lighten.pruning.earlier.compose` gives ``plan`` again.

    Args:
        plan: of a network.
        done: of the same network; removes nothing that ``plan`` keeps.
    """
    gone = {(slot.tensor, slot.dim): set(cut.removed) for cut in done.cuts for slot in cut.slots}
    alike: dict[tuple[int, tuple[int, ...]], list[Slot]] = {}
    for cut in plan.cuts:
        for slot in cut.slots:
            before = gone.get((slot.tensor, slot.dim), set())
            left = [i for i in range(cut.size) if i not in before]
            now = {i: place for place, i in enumerate(left)}
            removed = tuple(now[i] for i in cut.removed if i in now)
            if removed:
                alike.setdefault((len(left), removed), []).append(slot)
    cuts = tuple(Cut(size, removed, tuple(slots)) for (size, removed), slots in alike.items())
    attributes = {
        name: (done.attributes.get(name, (before,))[-1], after) for name, (before, after) in plan.attributes.items()
    }
    changed = {name: pair for name, pair in attributes.items() if pair[0] != pair[1]}
    return replace(Plan.of_cuts(cuts, plan.example, changed), part=plan.part)


def _is_of(done: Plan, plan: Plan) -> bool:
    """Return whether ``plan`` speaks of the network before ``done``, rather than of what that leaves."""
    sizes = {(slot.tensor, slot.dim): cut.size for cut in done.cuts for slot in cut.slots}
    known = [sizes[key] == c.size for c in plan.cuts for s in c.slots if (key := (s.tensor, s.dim)) in sizes]
    return all(known)


@torch.no_grad()
def lay_out_(model: nn.Module) -> None:
    """Give a network back the channels that :func:`cut_live_` took, in place: they hold zeros, as after masking.

    The direction of a filter has a size of its own besides, and a norm that is not zero.
    """
    live = live_cut_of(model)
    if live is None:
        return
    drop_cached_tensors_(model, live.plan.example)
    tensors = tensors_of(model)
    for module in model.modules():
        restore_(module)
    for cut, slot in slots_of(live.plan):
        tensor = tensors[slot.tensor]
        grad = tensor.grad if tensor.is_leaf else None
        wide = _laid_out(tensor.data, slot.dim, cut, fill=float(slot.role == "direction"))
        set_data_(tensor, wide, None if grad is None else _laid_out(grad, slot.dim, cut))
    modules = dict(model.named_modules())
    for name, kind in live.classes.items():
        modules[name].__class__ = kind
    for (name, key), value in live.attributes.items():
        modules[name].__dict__[key] = value
    choose_paths_(model)
    record_(model, live=None, plan=live.before)


def laid_out(model: nn.Module, *, share_weights: bool = False) -> nn.Module:
    """Return a copy of ``model`` as masks instead of cuts would have left it.

    Args:
        model: left as it is.
        share_weights: let what is not cut lie where that of ``model`` does; who writes into it writes into both.
    """
    copied = clone(model, share_weights=share_weights)
    lay_out_(copied)
    return copied


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of ``model`` by name, those that were cut laid out again, with their gradients."""
    tensors, live = tensors_of(model), live_cut_of(model)
    if live is None:
        return tensors
    found = dict(tensors)
    for cut, slot in slots_of(live.plan):
        tensor = found[slot.tensor]
        wide = _laid_out(tensor.detach(), slot.dim, cut).requires_grad_(tensor.requires_grad)
        wide.grad = None if tensor.grad is None else _laid_out(tensor.grad, slot.dim, cut)
        found[slot.tensor] = wide
    return found


def state_key(part: str) -> str:
    """Return the entry of a state dict that holds the plan of a part."""
    return f"{part}.{STATE_KEY}" if part else STATE_KEY


def add_cuts_(model: nn.Module, state: dict[str, Any], prefix: str = "", *_: Any) -> None:
    """Put into a state dict of ``model`` what is needed to load it into the network as it was before it was cut.

    It can be registered as a hook of ``state_dict()``.
    """
    for name, part in model.named_modules():
        live = live_cut_of(part)
        if live is not None:
            short = replace(Plan.of_cuts(live.plan.cuts, live.plan.example, live.plan.attributes), part=live.plan.part)
            state[prefix + state_key(name)] = torch.tensor(list(short.to_json().encode()), dtype=torch.uint8)


def slots_of(plan: Plan) -> Iterator[tuple[Cut, Slot]]:
    """Yield the tensors that a plan cuts, and where."""
    for cut in plan.cuts:
        for slot in cut.slots:
            if slot.role not in OF_MODULES:
                yield cut, slot


def kept_of(cut: Cut, device: torch.device) -> Tensor:
    """Return the positions that stay."""
    removed = set(cut.removed)
    return torch.tensor([i for i in range(cut.size) if i not in removed], device=device)


def _laid_out(tensor: Tensor, dim: int, cut: Cut, *, fill: float = 0.0) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = cut.size
    wide = tensor.new_full(shape, fill).index_copy_(dim, kept_of(cut, tensor.device), tensor)
    return laid_as(wide, tensor)
