"""Record of earlier pruning: masks and cuts that a model carries."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lighten.pruning.groups import Group, Structure
from lighten.pruning.mask import ZEROED
from lighten.pruning.plan import Cut, GroupPlan, Plan, Slot
from lighten.pruning.tensors import tensors_of
from lighten.utils.compression import record_of


def with_earlier(structure: Structure, model: nn.Module) -> Structure:
    """Return ``structure`` with what was removed from ``model`` before: by masks and by cuts."""
    tensors = tensors_of(model)
    cut = {(f"{prefix}{slot.tensor}", slot.dim): len(c.removed) for prefix, c, slot in _cuts(model)}
    saved = next((plan.saved for _, plan in plans_of(model)), {})
    return replace(
        structure,
        gone=tuple(_masked_channels(group, tensors) for group in structure.groups),
        absent=tuple(_absent(group, cut) for group in structure.groups),
        saved=dict(saved),
    )


def plans_of(model: nn.Module) -> Iterator[tuple[str, Plan]]:
    """Yield the plans by which ``model`` and parts of it were cut, with the prefix of their names."""
    for name, module in model.named_modules():
        plan = record_of(module, own=True).plan
        if isinstance(plan, Plan):
            yield f"{name}." if name else "", plan


def _cuts(model: nn.Module) -> Iterator[tuple[str, Cut, Slot]]:
    for prefix, plan in plans_of(model):
        for cut in plan.cuts:
            for slot in cut.slots:
                yield prefix, cut, slot


def _masked_channels(group: Group, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the channels that are zero in every place that masking zeroes; none where all are."""
    zero = torch.ones(group.width, dtype=torch.bool)
    for slot, index in group.positions.items():
        if slot.role in ZEROED:
            tensor = tensors[slot.tensor].detach()
            rows = tensor.movedim(slot.dim, 0).reshape(tensor.shape[slot.dim], -1)
            zero &= (rows == 0).all(1).cpu()[index].all(1)
    return () if bool(zero.all()) else tuple(torch.nonzero(zero).flatten().tolist())


def _absent(group: Group, cut: Mapping[tuple[str, int], int]) -> int:
    slot, index = next((slot, index) for slot, index in group.positions.items() if slot.role == "filter")
    return cut.get((slot.tensor, slot.dim), 0) // index.shape[1]


def compose(first: Plan, then: Plan) -> Plan:
    """Return one plan that removes what ``first`` does, and of the rest what ``then`` does.

    Args:
        first: of a model.
        then: of what ``first`` leaves of that model.
    """
    cuts = _composed(_by_slot(first), _by_slot(then))
    rows = {row.name: row for row in then.groups}
    known = [_joined(row, rows.pop(row.name, None)) for row in first.groups]
    saved = {key: 1.0 - (1.0 - first.saved[key]) * (1.0 - then.saved[key]) for key in first.saved if key in then.saved}
    widths = {layer: (first.widths.get(layer, (before,))[0], after) for layer, (before, after) in then.widths.items()}
    attributes = {**first.attributes}
    for name, (before, after) in then.attributes.items():
        attributes[name] = first.attributes.get(name, (before,))[0], after
    return replace(
        then, groups=(*known, *rows.values()), cuts=cuts, widths={**first.widths, **widths}, saved=saved,
        attributes=attributes,
    )  # fmt: skip


def _by_slot(plan: Plan) -> dict[Slot, Cut]:
    return {slot: cut for cut in plan.cuts for slot in cut.slots}


def _composed(first: Mapping[Slot, Cut], then: Mapping[Slot, Cut]) -> tuple[Cut, ...]:
    places = {(slot.tensor, slot.dim): slot for slot in (*then, *first)}
    alike: dict[tuple[int, tuple[int, ...]], list[Slot]] = {}
    one, other = ({(slot.tensor, slot.dim): cut for slot, cut in cuts.items()} for cuts in (first, then))
    for key, slot in places.items():
        size = (one.get(key) or other[key]).size
        gone = set(one[key].removed if key in one else ())
        left = [i for i in range(size) if i not in gone]
        gone.update(left[i] for i in (other[key].removed if key in other else ()))
        alike.setdefault((size, tuple(sorted(gone))), []).append(slot)
    return tuple(Cut(size, removed, tuple(slots)) for (size, removed), slots in alike.items())


def _joined(first: GroupPlan, then: GroupPlan | None) -> GroupPlan:
    if then is None or then.width_before != first.width_after:
        return first
    return replace(
        then, layers=first.layers, kept=tuple(first.kept[i] for i in then.kept),
        scores=_merged(first.scores, first.kept, then.scores), norms=_merged(first.norms, first.kept, then.norms),
    )  # fmt: skip


def _merged(before: Sequence[float], kept: Sequence[int], after: Sequence[float]) -> tuple[float, ...]:
    merged = list(before)
    for place, value in zip(kept, after, strict=False):
        if place < len(merged):
            merged[place] = value
    return tuple(merged)


def part_of_plan(plan: Plan, prefix: str) -> Plan:
    """Return what ``plan`` says of the part of its model whose names begin with ``prefix``, in that part's names."""
    short = lambda name: name.removeprefix(prefix)  # noqa: E731
    cuts = [replace(c, slots=tuple(s for s in c.slots if s.tensor.startswith(prefix))) for c in plan.cuts]
    inside = tuple(
        replace(c, slots=tuple(replace(s, tensor=short(s.tensor)) for s in c.slots)) for c in cuts if c.slots
    )
    rows = tuple(
        replace(row, name=short(row.name), layers=tuple(short(n) for n in row.layers if n.startswith(prefix)))
        for row in plan.groups
        if row.name.startswith(prefix)
    )
    of = lambda found: {short(n): value for n, value in found.items() if n.startswith(prefix)}  # noqa: E731
    return replace(
        plan, groups=rows, cuts=inside, frozen=of(plan.frozen), widths=of(plan.widths), part="",
        attributes=of(plan.attributes),
    )  # fmt: skip
