"""Groups of coupled channels."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.attention import trace_by_own_
from lighten.pruning.attributes import Sizes
from lighten.pruning.check import describe, drop_cached_tensors_, plain_copy
from lighten.pruning.labels import Labels
from lighten.pruning.plan import Cut, Plan, Slot
from lighten.pruning.rules import follow
from lighten.pruning.trace import Axis, Geometry, Tracer, export
from lighten.pruning.weights import layer_of
from lighten.utils.descriptions import ranges
from lighten.utils.inputs import Call, map_tensors
from lighten.utils.modules import match_names, refuse_unfit, weights_of

NEVER_RUN = "is never run on the example input"
STRIDE = 8
"""Elements of 16 bits in the 16 bytes of which kernels want strides to be multiples."""


@dataclass(frozen=True)
class Group:
    """Channels that are interchangeable: each has the same number of positions in the same places.

    Attributes:
        name: as :class:`~lighten.pruning.plan.GroupPlan` has it.
        layers: whose filters the channels own, in the order of the forward.
        positions: for each slot the indices that each channel has there, (width, count).
        roots: the label of each channel, (width,).
        proportion: a name that all groups share which lose channels in proportion, and in how many equal steps.
    """

    name: str
    layers: tuple[str, ...]
    positions: Mapping[Slot, Tensor]
    roots: Tensor
    proportion: tuple[str, int] | None = None

    @property
    def width(self) -> int:
        """How many channels there are."""
        return len(next(iter(self.positions.values())))

    def filters(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return each channel's filters of all layers, flattened and side by side, (width, features).

        The filter of a weight norm is its direction, where ``tensors`` hold it, times its size.
        """
        directions = {layer_of(slot.tensor): slot for slot in self.positions if slot.role == "direction"}
        rows = []
        for slot, index in self.positions.items():
            if slot.role == "filter":
                filters = _rows(tensors[slot.tensor], slot.dim)
                if (direction := directions.get(layer_of(slot.tensor))) and direction.tensor in tensors:
                    filters = filters * nn.functional.normalize(_rows(tensors[direction.tensor], direction.dim))
                rows.append(filters[index.to(filters.device)].flatten(1))
        return torch.cat(rows, dim=1)


@dataclass(frozen=True)
class LayerCost:
    """Multiply-accumulates of one layer, in step with the labels along each of its dimensions."""

    layer: str
    macs: int
    factors: tuple[tuple[int, ...], ...]
    geometry: Geometry | None = None


@dataclass(frozen=True)
class Structure:
    """A model as pruning sees it.

    Attributes:
        groups: in the order of the forward.
        frozen: layers that are not pruned, whole or in part, and why.
        sizes: length of each dimension that a channel has a place in, by parameter and dimension.
        layers: the producers' dimension of each layer, by layer name.
        shapes: of all parameters, each once.
        costs: what the forward computes.
        example: the traced call, as :func:`~lighten.pruning.check.describe` puts it.
        read: sizes that the forward computes from attributes of modules, and from shapes.
        labels: how many labels there are.
        tied: the same model, its channels tied further where the forward cuts them into equal parts: what to try
            for groups that cannot be cut one by one.
        gone: channels of each group that are masked already; see :mod:`~lighten.pruning.earlier`, as for the next two.
        absent: how many channels of each group were cut out of the model before.
        saved: shares of the original model's cost that went with these.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    sizes: Mapping[tuple[str, int], int] = field(repr=False)
    layers: Mapping[str, tuple[str, int]] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    costs: tuple[LayerCost, ...] = field(repr=False)
    example: Mapping[str, Any] = field(repr=False)
    read: Sizes = field(repr=False)
    labels: int
    tied: "Callable[[Iterable[Group]], Structure | None]" = field(repr=False)
    gone: tuple[tuple[int, ...], ...] = ()
    absent: tuple[int, ...] = ()
    saved: Mapping[str, float] = field(default_factory=dict)

    def cuts(self, removed: Sequence[Collection[int]]) -> tuple[Cut, ...]:
        """Return what is cut where, if these channels of each group go."""
        gone: dict[Slot, set[int]] = {}
        for group, channels in zip(self.groups, removed, strict=True):
            if not channels:
                continue
            index = torch.as_tensor(sorted(channels), dtype=torch.int64)
            for slot, positions in group.positions.items():
                gone.setdefault(slot, set()).update(positions[index].flatten().tolist())
        alike: dict[tuple[int, tuple[int, ...]], list[Slot]] = {}
        for slot, places in gone.items():
            if places:
                alike.setdefault((self.sizes[slot.tensor, slot.dim], tuple(sorted(places))), []).append(slot)
        return tuple(Cut(size, places, tuple(slots)) for (size, places), slots in alike.items())

    def changes(self, removed: Sequence[Iterable[int]]) -> dict[str, tuple[int, int]]:
        """Return the attributes that change, before and after, if these channels of each group go.

        Raises:
            UserError: if two reads of one attribute want different values.
        """
        changes, wrong = self.read.changes(self.marked(removed))
        if wrong:
            raise UserError(f"the forward reads {wrong[0][0].formula} in two ways, as widths that differ after the cut")
        return changes

    def marked(self, removed: Sequence[Iterable[int]]) -> Tensor:
        """Return for each label whether its channel goes, if these channels of each group do."""
        gone = torch.zeros(self.labels, dtype=torch.bool)
        for group, channels in zip(self.groups, removed, strict=True):
            gone[group.roots[torch.as_tensor(sorted(channels), dtype=torch.int64)]] = True
        return gone

    def trial(self, removed: Sequence[Collection[int]]) -> Plan:
        """Return a plan that says no more than to cut these channels of each group."""
        return Plan.of_cuts(self.cuts(removed), self.example, self.changes(removed))

    def widths(self, cuts: Iterable[Cut]) -> dict[str, tuple[int, int]]:
        """Return the channels of each layer before and after ``cuts``."""
        gone = {(slot.tensor, slot.dim): len(cut.removed) for cut in cuts for slot in cut.slots}
        return {layer: (self.sizes[key], self.sizes[key] - gone.get(key, 0)) for layer, key in self.layers.items()}


def find_groups(model: nn.Module, call: Call, *, exclude: Sequence[str] = ()) -> Structure:
    """Trace ``model`` once and return its groups.

    Nothing is changed. Whether the groups can be cut in fact is the business of
    :func:`~lighten.pruning.verify.verify_groups`.

    Args:
        model: not wrapped for distributed training.
        call: arguments to run it with.
        exclude: names or patterns of layers whose filters stay, and with them all that is tied to them.

    Raises:
        UserError: if the model is wrapped, cannot be traced, or a pattern matches no layer.
    """
    refuse_unfit(model)
    copied = plain_copy(model)
    example = describe(call)
    drop_cached_tensors_(copied, example)
    trace_by_own_(copied)
    exported, reads = export(copied, _in_its_type(copied, call))
    if reads.failure:
        what = f"the sizes that {type(model).__name__} reads from its attributes cannot be followed"
        warnings.warn(f"{what} ({reads.failure}): heads and widths that depend on them stay", stacklevel=2)
    tracer = follow(Tracer(exported, copied, reads))
    layers = _layers(tracer.axes)
    own = dict(model.named_parameters())
    reached = {id(own.get(tensor)) for tensor, _ in tracer.axes}
    cuttable = {name: module for name, module in model.named_modules() if isinstance(module, CUTTABLE)}
    unused = {name for name, module in cuttable.items() if reached.isdisjoint(map(id, weights_of(module)))}
    for layer in match_names(exclude, {*layers, *tracer.unprunable, *cuttable}):
        if layer in layers:
            tracer.labels.freeze(tracer.axes[layers[layer]].labels, "is excluded")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return _structure(tracer, layers, unused, shapes, example)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor.detach().movedim(dim, 0).flatten(1).float()


def _in_its_type(model: nn.Module, call: Call) -> Call:
    """Return ``call`` in the type of the weights, where these are all of one type of 16 bits."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    half = next(iter(kinds)) if len(kinds) == 1 else torch.float32
    if half not in (torch.float16, torch.bfloat16):
        return call
    return map_tensors(lambda t: t.to(half) if t.is_floating_point() else t, call)


def _structure(
    tracer: Tracer,
    layers: Mapping[str, tuple[str, int]],
    unused: set[str],
    shapes: Mapping[str, tuple[int, ...]],
    example: Mapping[str, Any],
) -> Structure:
    sizes = {key: len(axis.labels) for key, axis in tracer.axes.items()}
    groups, alone = _groups(tracer, layers)
    frozen = _frozen(tracer, layers) | alone | tracer.unprunable
    for layer in unused - {*layers, *frozen}:
        frozen[layer] = NEVER_RUN
    costs = tuple(
        LayerCost(
            work.layer, work.macs, tuple(tuple(tracer.labels.find(v).tolist()) for v in work.along), work.geometry
        )
        for work in tracer.work
    )

    def tied(failed: Iterable[Group]) -> Structure | None:
        if not _tie_parts(tracer, failed):
            return None
        return _structure(tracer, layers, unused, shapes, example)

    find = tracer.labels.find
    read = Sizes(
        tuple(replace(size, rows=find(size.rows)) for size in tracer.sizes),
        {name: find(rows) for name, rows in tracer.shapes.items()},
        tracer.reads.values,
    ).known()
    return Structure(groups, frozen, sizes, layers, shapes, costs, example, read, tracer.labels.size, tied)


def _tie_parts(tracer: Tracer, failed: Iterable[Group]) -> bool:
    """Tie position j of every part, where channels of these groups are cut into equal parts; say if that ties any."""
    roots = {int(root) for group in failed for root in group.roots.tolist()}
    new = False
    for parts in tracer.parts:
        found = tracer.labels.find(parts)
        if bool((found == found[:, :1]).all()):  # each part goes as a whole, as heads do
            continue
        if not roots.isdisjoint(found.flatten().tolist()) and bool((found != found[:1]).any()):
            tracer.labels.unite(parts, parts[:1].expand_as(parts))
            roots.update(tracer.labels.find(parts).flatten().tolist())
            new = True
    return new


CUTTABLE = (nn.modules.conv._ConvNd, nn.Linear)


def _layers(axes: Mapping[tuple[str, int], Axis]) -> dict[str, tuple[str, int]]:
    layers: dict[str, tuple[str, int]] = {}
    for (tensor, dim), axis in axes.items():
        if axis.role == "filter":
            name = layer_of(tensor)
            layers[f"{name}:{dim}" if name in layers else name] = tensor, dim
    return layers


def _groups(tracer: Tracer, layers: Mapping[str, tuple[str, int]]) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return the groups, and the layers whose channels can only go all at once."""
    owners = {key: layer for layer, key in layers.items()}
    kinds = [kind for kind in _kinds(tracer.labels, tracer.axes) if any(key in owners for key in kind.keys)]
    split = Counter(key for kind in kinds for key in kind.keys)
    strided = tracer.labels.find(torch.cat([torch.empty(0, dtype=torch.int64), *tracer.strided]))
    groups, alone = [], {}
    for kind in kinds:
        tied = tuple(owners[key] for key in kind.keys if key in owners)
        if len(kind.roots) < 2:
            alone.update(dict.fromkeys(tied, "its channels can only go all at once"))
            continue
        places = {key: _positions(tracer, key, kind.roots) for key in kind.keys}
        first = next(key for key in kind.keys if key in owners)
        own = sorted(places[first].flatten().tolist())
        name = tied[0] if split[first] == 1 else f"{tied[0]}[{ranges(own)}]"
        positions = {Slot(*key, tracer.axes[key].role): index for key, index in places.items()}
        steps = len(kind.roots) // math.gcd(len(kind.roots), STRIDE) if torch.isin(kind.roots, strided).any() else 0
        groups.append(Group(name, tied, positions, kind.roots, (name, steps) if steps > 1 else None))
    in_groups = {layer for group in groups for layer in group.layers}
    return tuple(groups), {layer: why for layer, why in alone.items() if layer not in in_groups}


@dataclass(frozen=True)
class _Kind:
    """Channels that have the same number of positions along the same axes."""

    keys: tuple[tuple[str, int], ...]
    roots: Tensor


def _kinds(labels: Labels, axes: Mapping[tuple[str, int], Axis]) -> list[_Kind]:
    """Sort the channels that may go by where they live, in the order of the forward.

    Axis by axis, each channel's kind so far, paired with its positions there, makes its next kind.
    """
    free = torch.ones(labels.size, dtype=torch.bool)
    free[torch.tensor(list(labels.reasons()), dtype=torch.int64)] = False
    kind = torch.zeros(labels.size, dtype=torch.int64)
    order = torch.full((labels.size,), -1)
    keys: list[tuple[tuple[str, int], ...]] = [()]
    seen = 0
    for key, axis in axes.items():
        found = labels.find(axis.labels)
        found = found[free[found]]
        roots, where, counts = torch.unique(found, return_inverse=True, return_counts=True)
        if not len(roots):
            continue
        first = torch.full((len(roots),), len(found)).scatter_reduce(0, where, torch.arange(len(found)), "amin")
        new = order[roots] < 0
        order[roots[new]] = seen + first[new]
        seen += len(found)
        most = int(counts.max()) + 1
        pairs, inverse = torch.unique(kind[roots] * most + counts, return_inverse=True)
        kind[roots] = len(keys) + inverse
        keys += [(*keys[before], key) for before in (pairs // most).tolist()]
    members = torch.nonzero(order >= 0).flatten()
    members = members[torch.sort(order[members]).indices]
    numbers = list(dict.fromkeys(kind[members].tolist()))
    return [_Kind(keys[number], members[kind[members] == number]) for number in numbers]


def _positions(tracer: Tracer, key: tuple[str, int], roots: Tensor) -> Tensor:
    """Return where each channel lives along an axis, (width, count), ascending."""
    found = tracer.labels.find(tracer.axes[key].labels)
    ascending, rank = torch.sort(roots)
    at = torch.searchsorted(ascending, found).clamp_(max=len(roots) - 1)
    ranks = rank[at]
    places = torch.nonzero(ascending[at] == found).flatten()
    return places[torch.sort(ranks[places], stable=True).indices].reshape(len(roots), -1)


def _frozen(tracer: Tracer, layers: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    reasons = tracer.labels.reasons()
    found = {}
    for layer, key in layers.items():
        roots = tracer.labels.find(tracer.axes[key].labels).tolist()
        whys = [reasons[root] for root in roots if root in reasons]
        if whys:
            part = f"{len(whys)} of {len(roots)} channels: " if len(whys) < len(roots) else ""
            found[layer] = part + whys[0]
    return found
