"""What of a plan is worth cutting before its end: widths at which steps get faster; the rest stays masked."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lighten.pruning.groups import Group, Structure
from lighten.pruning.live import live_cut_of
from lighten.pruning.plan import Plan
from lighten.utils.layout import WIDEST_REGISTER, is_narrow

STEP = 8
"""Channels of which widths become multiples: whole registers of processors, whole tiles of tensor cores."""
WIDE = 4 * STEP
"""Layers of fewer channels are cut to any width: a step would be too much of them."""


def worthwhile(structure: Structure, model: nn.Module, plan: Plan) -> Plan:
    """Return the part of ``plan`` that is worth cutting now, with all that has been cut.

    Wide layers are cut to multiples of :data:`STEP`; layers before a strided 1x1 convolution keep as many channels as
    channels-last order wants (:mod:`lighten.utils.layout`), as long as the model has it. Groups that lose channels in
    proportion are cut as planned.

    Args:
        structure: of the network before it was cut.
        model: the network, as it is.
        plan: with a row for each group of ``structure``.
    """
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)]
    watched = {f"{n}.weight" for n, m in convolutions if max(m.stride) > 1 and max(m.kernel_size) == 1}
    if is_narrow(model):
        watched = set()
    removed = []
    for group, row in zip(structure.groups, plan.groups, strict=True):
        cut = _cut_already(group, model)
        order = [*cut, *(channel for channel in row.removed if channel not in set(cut))]
        before_strided = any(slot.tensor in watched and slot.dim == 1 for slot in group.positions)
        count = len(order) if group.proportion else _count(group, len(order), WIDEST_REGISTER if before_strided else 1)
        removed.append(sorted(order[: max(count, len(cut))]))
    return replace(plan, cuts=structure.cuts(removed), attributes=structure.changes(removed))


def _cut_already(group: Group, model: nn.Module) -> Sequence[int]:
    live = live_cut_of(model)
    if live is None:
        return []
    slot, index = next((slot, index) for slot, index in group.positions.items() if slot.role == "filter")
    places = {
        (s.tensor, s.dim): set(cut.removed) for cut in live.plan.cuts for s in cut.slots
    }  # fmt: skip
    gone = places.get((slot.tensor, slot.dim), set())
    return [channel for channel, own in enumerate(index.tolist()) if own[0] in gone]


def _count(group: Group, most: int, least_left: int) -> int:
    """Return how many channels to cut, at most ``most``, so that what is left is a good width."""
    unit = next(index.shape[1] for slot, index in group.positions.items() if slot.role == "filter")
    step = STEP if group.width * unit >= WIDE else 1
    for count in range(most, 0, -1):
        left = (group.width - count) * unit
        if left % step == 0 and left >= least_left:
            return count
    return 0
