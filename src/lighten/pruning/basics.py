"""What rules of operators share: labels that meet, that are frozen, that are made."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lighten.pruning.labels import along, compact, spread
from lighten.pruning.operators import CONSTANT, name_of
from lighten.pruning.tags import Read
from lighten.pruning.trace import MAX_ELEMENTS, Tracer, location
from lighten.pruning.weights import Weight


def shape_of(node: Node) -> torch.Size:
    """Return the shape of what ``node`` puts out."""
    return node.meta["val"].shape


def given(tracer: Tracer, value: Any) -> Any:
    """Return labels: of an activation as they are, of a parameter one an element."""
    return tracer.elements(value) if isinstance(value, Weight) else value


def freeze(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Freeze whatever goes in, and put out one frozen label."""
    taken = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor | Weight)]
    if not taken:
        return made(tracer, node)
    why = f"goes through {name_of(node)} ({location(node)})"
    for value in taken:
        if isinstance(value, Weight):
            tracer.freeze_weight(value, why)
        else:
            tracer.labels.freeze(value, why)
    return all_fixed(tracer, node, why)


def made(tracer: Tracer, node: Node, *_: Any, **__: Any) -> Any:
    """A tensor out of nothing has the size that the forward says; what says an attribute, or a width, may follow it."""
    if name_of(node).removeprefix("new_") in CONSTANT:
        shape = shape_of(node)
        reads = [read for read in tracer.reads.of(node) if read.kind == "size" and 0 <= read.index < len(shape)]
        free = [read for read in reads if shape[read.index] > 1 and tracer.of_channels(read)]
        if len(free) == 1:
            return made_along(tracer, free[0], shape)
        if free:  # such as heads and their features: what is written there, part by part, says which go together
            sizes = [n if dim in {read.index for read in free} else 1 for dim, n in enumerate(shape)]
            if count(sizes) <= MAX_ELEMENTS:
                return tracer.labels.fresh(count(sizes)).reshape(sizes).expand(shape)
    return all_fixed(tracer, node, f"is tied to what {name_of(node)} makes ({location(node)})")


def made_along(tracer: Tracer, read: Read, shape: torch.Size) -> Tensor:
    """Return the labels of what is as wide as ``read`` says: those of the channels that it counts, or new ones."""
    known = tracer.shapes.get(read.formula.operation)
    labels = known[:, 0] if known is not None and known.shape[1] == 1 else tracer.labels.fresh(shape[read.index])
    return along(labels, shape, read.index)


def all_fixed(tracer: Tracer, node: Node, why: str) -> Any:
    """Return one frozen label for each tensor that ``node`` puts out."""
    return each(node, lambda v: tracer.labels.fixed(v.shape, why))


def each(node: Node, labels: Callable[[Tensor], Tensor]) -> Any:
    """Return the labels of every tensor that ``node`` puts out, in the shape in which it puts them out."""
    return tree_map(lambda v: labels(v) if isinstance(v, Tensor) else None, node.meta["val"])


def meet(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Unite two operands, element by element.

    An element that is broadcast over several channels belongs to none of them: it is frozen, and they stay apart. Where
    both are, as in an outer product, those that are fewer are frozen.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = (x[(None,) * (len(shape) - x.ndim)] for x in (a, b))
    a_many, b_many = ([d for d, n in enumerate(shape) if n > 1 and x.size(d) == 1] for x in (a, b))
    both = torch.stack(torch.broadcast_tensors(compact(a), compact(b)))
    one, other = tracer.labels.find(both)
    one, other = _tied_elements(tracer, one, other, b_many), _tied_elements(tracer, other, one, a_many)
    why = f"is broadcast over channels ({location(node)})"
    a_frozen, b_frozen = differ(other, a_many), differ(one, b_many)
    if bool((outer := a_frozen & b_frozen).any()):
        first_has_fewer = len(torch.unique(one[outer])) < len(torch.unique(other[outer]))
        a_frozen, b_frozen = (a_frozen, b_frozen & ~outer) if first_has_fewer else (a_frozen & ~outer, b_frozen)
    tracer.labels.freeze(one[a_frozen], why)
    tracer.labels.freeze(other[b_frozen], why)
    apart = a_frozen | b_frozen
    tracer.labels.unite(one[~apart], other[~apart])
    return spread(torch.where(a_frozen, other, one)).expand(shape)


def _tied_elements(tracer: Tracer, labels: Tensor, other: Tensor, dims: list[int]) -> Tensor:
    """Return labels, those of a parameter whose elements no layer has tied along ``dims``, over which channels go."""
    apart = differ(labels, dims)
    if not bool(apart.any()) or not tracer.unclaimed(labels[apart]):
        return labels
    first = labels.amin(dims, keepdim=True)
    if bool((first == first.flatten()[0]).all()) or bool((other == other.flatten()[0]).all()):
        return labels
    tracer.labels.unite(labels, first.expand_as(labels))
    return tracer.labels.find(labels)


def differ(labels: Tensor, dims: list[int]) -> Tensor:
    """Say of each element whether the labels differ along ``dims`` at its place."""
    if not dims:
        return torch.zeros_like(labels, dtype=torch.bool)
    return (labels.amin(dims, keepdim=True) != labels.amax(dims, keepdim=True)).expand_as(labels)


def count(shape: Iterable[int]) -> int:
    """Return how many elements there are."""
    return math.prod(shape)


def reduce_along(tracer: Tracer, node: Node, x: Tensor, dims: list[int], *, harmless: bool = False) -> Tensor:
    """Return the labels with ``dims`` at size 1, having frozen those that differ along them.

    Where there are others along other dimensions, such as heads, these stay free: what meets is one channel. They all
    stay free where a zero is ``harmless``: masked channels add nothing, unless the forward makes them other than zero,
    which trial cuts show.
    """
    if not x.ndim:
        return x
    gone = {dim % x.ndim for dim in dims}
    found = tracer.labels.find(compact(x))
    mixed = differ(found, dims)
    if tracer.labels.unread:
        mixed = torch.zeros_like(mixed)
    elif bool(mixed.any()) and tracer.several(found, dims):
        tracer.labels.unite(found, found.amin(dims, keepdim=True).expand_as(found))
        found = tracer.labels.find(found)
        mixed = torch.full_like(mixed, bool((found == found.flatten()[0]).all()))
    elif harmless and bool(mixed.all()):
        shape = [1 if d in gone else n for d, n in enumerate(x.shape)]
        return tracer.labels.fixed(shape, f"{name_of(node)} mixes its channels ({location(node)})")
    tracer.labels.freeze(found[mixed], f"{name_of(node)} mixes its channels ({location(node)})")
    return found.amin(dims, keepdim=True).expand([1 if d in gone else n for d, n in enumerate(x.shape)])
