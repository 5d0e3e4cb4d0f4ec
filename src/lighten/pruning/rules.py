"""Rules of operators for channel labels; an operator without a rule freezes the labels that it touches."""

import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from lighten.pruning.basics import each, freeze, given, made, made_along, meet, reduce_along, shape_of
from lighten.pruning.computed import computed_weights
from lighten.pruning.idle import attach_idle
from lighten.pruning.labels import along, compact, spread, varies, varies_only
from lighten.pruning.operators import ALONG, MOVES, PER_CHANNEL, POINTWISE, RECURRENT, REDUCTIONS, SAME, name_of
from lighten.pruning.outputs import put_out_by
from lighten.pruning.pairs import PAIRS
from lighten.pruning.parts import NotTracedError
from lighten.pruning.products import PRODUCTS
from lighten.pruning.regions import Regions
from lighten.pruning.trace import Tracer, location, module_of
from lighten.pruning.transforms import TRANSFORMS
from lighten.pruning.weights import Weight

Rule = Callable[..., Any]


def follow(tracer: Tracer) -> Tracer:
    """Label the whole graph, node by node."""
    env: dict[Node, Any] = {}
    last = {used: node for node in tracer.graph.nodes for used in node.all_input_nodes}
    regions, read, computed = Regions(tracer), _read(tracer.graph), computed_weights(tracer)
    for node in tracer.graph.nodes:
        tracer.labels.unread = node not in read
        env.update(regions.enter(node, env))
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        if node in env:  # within a norm as a whole
            pass
        elif node in computed:
            env[node] = computed[node]
        elif node.op == "call_function":
            env[node] = _apply(tracer, node, args, kwargs)
            _note_sizes(tracer, node, args, kwargs, env[node])
            tracer.note_shape(node, env[node])
        elif node.op == "output":
            tracer.mark_output(args)
        else:
            env[node] = tracer.placeholder_labels(node)
        for used in node.all_input_nodes:
            if last[used] is node:
                del env[used]
    regions.settle()
    tracer.finalize()
    attach_idle(tracer)
    return tracer


def _read(graph: Graph) -> set[Node]:
    """Return the nodes that reach the output, or write into a tensor; and all that is put in.

    The forward also computes the others, such as averages of attention that nobody asks for: they must run on the cut
    widths, and that is all.
    """
    read = {node for node in graph.nodes if node.op != "call_function" or node.is_impure()}
    for node in reversed(graph.nodes):
        if node in read:
            read.update(node.all_input_nodes)
    return read


def _apply(tracer: Tracer, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the labels of what ``node`` puts out, given those of what it takes."""
    if node.target is operator.getitem:
        return args[0][args[1]]
    if not any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val"))):
        return None
    if (module := put_out_by(node)) is not None:
        return tracer.computed(module, shape_of(node))
    name = name_of(node)
    values = [v for v in tree_leaves(node.meta["val"]) if isinstance(v, Tensor)]
    if any(not isinstance(size, int) for v in values for size in v.shape):
        raise NotTracedError(
            f"{name} gives a size that depends on the values of its input ({location(node)}), and channels cannot be "
            "followed through it; prune a part of the model that does without"
        )
    return (RULES.get(name) or _kind(node, name))(tracer, node, *args, **kwargs)


def _note_sizes(tracer: Tracer, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Note which channels the sizes count that the operator was given from attributes."""
    for read in tracer.reads.of(node):
        if read.kind == "size" and isinstance(result, Tensor) and -result.ndim <= read.index < result.ndim:
            if result.size(read.index) == read.value:
                tracer.note_size(read, result, read.index)
        elif read.kind == "part" and isinstance(result, list | tuple) and read.index < len(result):
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            if isinstance(part := result[read.index], Tensor | Weight) and part.shape[dim] == read.value:
                tracer.note_size(read, part, dim)
        elif read.kind == "bound" and name_of(node) == "slice" and isinstance(args[0], Tensor):
            dim, start, end = (*args[1:4], *(0, 0, None)[len(args) - 1 :])[:3]
            size = args[0].size(dim)
            if read.value in (start, end) and abs(read.value) <= size:
                counted = (0, read.value) if read.value >= 0 else (size + read.value, -read.value)
                tracer.note_size(read, args[0].narrow(dim, *counted), dim, backwards=read.value < 0)
        elif read.kind == "groups" and isinstance(args[0], Tensor) and read.value > 0 and args[0].ndim > 1:
            channels = tracer.labels.unite_along(args[0], 1)
            if len(channels) % read.value == 0:
                tracer.note_size(read, channels.reshape(read.value, -1), 0)


def _kind(node: Node, name: str) -> Rule:
    """Return the rule of an operator that is known by its kind alone."""
    if PER_CHANNEL.match(name):
        return _per_channel
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _pointwise
    if name.startswith("new_"):
        return made
    return _same if name.endswith("_like") else freeze


def _same(tracer: Tracer, node: Node, x: Any, *_: Any, **__: Any) -> Any:
    """Elements keep their places: the labels go through. A parameter in another type is still that parameter."""
    if isinstance(x, Weight) and isinstance(node.meta["val"], Tensor):
        return x
    labels = given(tracer, x)
    return each(node, lambda v: labels)


def _move(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Elements change their places: run the operator on the labels themselves."""
    if args and isinstance(args[0], Weight) and not any(isinstance(v, Tensor | Weight) for v in tree_leaves(args[1:])):
        view = args[0].viewed(node.target, *args[1:], **kwargs)  # type: ignore[arg-type]
        if view is not None:
            return view
    args, kwargs = tree_map(lambda v: given(tracer, v), (args, kwargs))
    args, kwargs = tree_map(lambda v: v[...] if isinstance(v, Tensor) else v, (args, kwargs))  # in place, on a view
    measured = any(isinstance(v, Tensor) for v in tree_leaves((args[1:], kwargs))) and not name_of(node).endswith("_as")
    if measured or "dtype" in node.target._overloadname:  # type: ignore[union-attr]
        return freeze(tracer, node, *args, **kwargs)
    casts: tuple[Callable[[Tensor], Tensor], ...] = (lambda t: t, torch.Tensor.contiguous, torch.Tensor.double)
    _note_parts(tracer, node, args)
    for cast in casts:
        try:
            moved = node.target(  # type: ignore[operator]
                *tree_map(lambda v, cast=cast: cast(v) if isinstance(v, Tensor) else v, args),
                **tree_map(lambda v, cast=cast: cast(v) if isinstance(v, Tensor) else v, kwargs),
            )
        except RuntimeError:  # a stride that the labels have not, or no kernel for integers
            continue
        return tree_map(lambda v: spread(_found(tracer, v.long())) if isinstance(v, Tensor) else v, moved)
    return freeze(tracer, node, *args, **kwargs)


def _found(tracer: Tracer, labels: Tensor) -> Tensor:
    """Return the sets of labels: what is of one channel here may have come by different ways."""
    return tracer.labels.find(compact(labels)).expand(labels.shape)


def _note_parts(tracer: Tracer, node: Node, args: tuple[Any, ...]) -> None:
    """Note where channels are cut into equal parts: if their number follows the width, each part loses as many."""
    labels, name = args[0], name_of(node)
    if not isinstance(labels, Tensor):
        return
    if name in ("chunk", "split", "unsafe_chunk", "unsafe_split"):
        dim = next((a for a in args[2:3] if isinstance(a, int)), node.kwargs.get("dim", 0))
        parts = len(node.meta["val"])
        if isinstance(dim, int) and varies_only(labels, dim) and parts > 1 and labels.size(dim) % parts == 0:
            tracer.parts.append(tracer.labels.unite_along(labels, dim).reshape(parts, -1))
    elif name in ("view", "reshape", "unflatten"):
        labels = spread(_found(tracer, labels))  # what was put together of several may have become one since
        before, after = labels.shape, shape_of(node)
        dim = next((d for d, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
        sizes = itertools.accumulate(after[dim:], operator.mul)
        parted = dim < len(before) and next((n for n in sizes if n >= before[dim]), 0) == before[dim] != after[dim]
        if parted and varies_only(labels, dim):
            tracer.parts.append(tracer.labels.unite_along(labels, dim).reshape(after[dim], -1))
    elif name == "slice" and (args[4:5] or (1,))[0] == 1:
        dim, start, end = list(args[1:4]) + [0, 0, None][len(args[1:4]) :]
        if varies_only(labels, dim) and isinstance(node.args[0], Node):
            tracer.note_slice(node.args[0], dim, labels, start or 0, 2**62 if end is None else end)


def _pointwise(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Elements meet: unite the labels of all operands."""
    operands = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor | Weight)]
    if not operands:
        return made(tracer, node)
    labels = given(tracer, operands[0])
    for before, other in itertools.pairwise(operands):
        own = given(tracer, other)
        if isinstance(other, Weight) or isinstance(before, Weight):
            _tie_over(tracer, *((labels, own) if isinstance(other, Weight) else (own, labels)))
        labels = meet(tracer, node, labels, own)
    return each(node, lambda v: labels.expand(v.shape))


def _tie_over(tracer: Tracer, x: Tensor, parameter: Tensor) -> None:
    """Tie the channels over which a parameter with one element a channel is broadcast: they can only go with it."""
    shape = torch.broadcast_shapes(x.shape, parameter.shape)
    if x.shape != shape:
        return
    parameter = parameter[(None,) * (len(shape) - parameter.ndim)]
    if any(varies(parameter, dim) and varies(x, dim) for dim in range(len(shape))):
        small = compact(x)
        for dim in range(len(shape)):
            if parameter.size(dim) == 1 and varies(x, dim):
                tracer.labels.unite(small, small.narrow(dim, 0, 1).expand_as(small))


def _embedding(tracer: Tracer, node: Node, weight: Any, indices: Any, *_: Any, **__: Any) -> Tensor:
    if not isinstance(weight, Weight):
        return freeze(tracer, node, weight, indices)
    return along(tracer.new_labels(weight, 1), shape_of(node), -1)


def _embedding_bag(tracer: Tracer, node: Node, weight: Any, indices: Any, *rest: Any, **named: Any) -> Any:
    """Sums, means or maxima of rows, channel by channel, and what the backward pass needs of them."""
    if not isinstance(weight, Weight):
        return freeze(tracer, node, weight, indices)
    value = node.meta["val"]
    labels = along(tracer.new_labels(weight, 1), (value if isinstance(value, Tensor) else value[0]).shape, -1)
    if isinstance(value, Tensor):
        return labels
    why = f"is tied to what {name_of(node)} counts ({location(node)})"
    return [labels, *(tracer.labels.fixed(other.shape, why) for other in value[1:])]


def _batch_norm(tracer: Tracer, node: Node, x: Any, *rest: Any) -> Any:
    """One scale, shift, mean and variance a channel; channels do not meet."""
    weight, bias, mean, variance = rest[:4]
    x = given(tracer, x)
    inputs = tracer.labels.unite_along(x, 1)
    for tensor, role in ((weight, "norm"), (bias, "shift"), (mean, "statistic"), (variance, "statistic")):
        if isinstance(tensor, Weight):
            tracer.attach(tensor, 0, inputs, role)
        elif isinstance(tensor, Tensor):
            return freeze(tracer, node, x, weight, bias, mean, variance)
    return _same(tracer, node, x)


def _prelu(tracer: Tracer, node: Node, x: Any, weight: Any) -> Any:
    if not isinstance(weight, Weight):
        return freeze(tracer, node, x, weight)
    x = given(tracer, x)
    if weight.shape and weight.shape[0] > 1:
        tracer.attach(weight, 0, tracer.labels.unite_along(x, 1), "scale")
    return x


def _layer_norm(
    tracer: Tracer, node: Node, x: Any, normalized: list[int], weight: Any = None, bias: Any = None, *_: Any
) -> Any:
    """Statistics run over the channels; whether they can leave some of them out, masking shows."""
    x = given(tracer, x)
    if len(normalized) > 1 or not isinstance(weight, Weight) or (varies(x, -1) and tracer.several(x, [-1])):
        reduce_along(tracer, node, x, list(range(-len(normalized), 0)))
        return _same(tracer, node, x)
    return _normed(tracer, node, x, tracer.labels.unite_along(x, -1), weight, bias)


def _group_norm(tracer: Tracer, node: Node, x: Any, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Any:
    """Statistics run over each group of channels, which go together; a lone group is as a layer norm's."""
    x = given(tracer, x)
    inputs = tracer.labels.unite_along(x, 1)
    if not isinstance(weight, Weight) or (weight.shape[0] == groups and groups == 1):
        return freeze(tracer, node, x, weight, bias)
    if groups > 1:
        tracer.labels.unite_along(inputs.reshape(groups, -1), 0)
    return _normed(tracer, node, x, inputs, weight, bias)


def _normed(tracer: Tracer, node: Node, x: Any, inputs: Tensor, weight: Any, bias: Any) -> Any:
    for tensor, role in ((weight, "norm"), (bias, "shift")):
        if isinstance(tensor, Weight):
            tracer.attach(tensor, 0, inputs, role)
        elif isinstance(tensor, Tensor):
            return freeze(tracer, node, x, weight, bias)
    return _same(tracer, node, x)


def _reduction(tracer: Tracer, node: Node, x: Any, *rest: Any, **named: Any) -> Any:
    """Dimensions go; channels that meet in the result are frozen."""
    owned = isinstance(x, Weight)
    x = given(tracer, x)
    if rest and isinstance(rest[0], Tensor | Weight):  # torch.max(x, y)
        return _pointwise(tracer, node, x, rest[0])
    name = name_of(node)
    at = 1 if name in ("norm", "linalg_vector_norm") else 0
    dims = named.get("dim", rest[at] if len(rest) > at else None)
    dims = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    dims = dims if isinstance(dims, list | tuple) and dims else list(range(x.ndim))
    if owned and any(varies(x, d) for d in range(x.ndim) if d not in {dim % x.ndim for dim in dims}):
        for dim in dims:  # of a parameter: every place along it counts in all that is left
            x = _tied_along(tracer, x, dim)
    power = named.get("ord", named.get("p", rest[0] if at and rest else 2))
    harmless = name == "sum" or (at == 1 and isinstance(power, int | float) and power > 0)
    reduced = reduce_along(tracer, node, x, list(dims), harmless=harmless)
    return each(node, lambda v: spread(reduced.reshape(v.shape)))


def _index(tracer: Tracer, node: Node, x: Any, indices: Any) -> Any:
    """Places are picked by tensors; where channels do not lie along them, they stay as they are.

    Of a parameter, such as a table of biases, any place may come anywhere: those along the picked dimensions are tied.
    Where the forward says in numbers which places it picks, their labels are picked.
    """
    if isinstance(x, Weight) and len(x.shape) == 3 and len(indices) == 1 and len(shape_of(node)) == 3:
        return x.pick(shape_of(node)[0])
    labels = given(tracer, x)
    picked = [None if index is None else _number(tracer, index) for index in node.args[1]]  # type: ignore[union-attr]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if all(picked[dim] is not None for dim in dims):
        return spread(torch.ops.aten.index(labels, picked))
    for dim in dims if isinstance(x, Weight) else ():
        labels = _tied_along(tracer, labels, dim)
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    if not adjacent or any(varies(labels, dim) for dim in dims):
        return freeze(tracer, node, x, *indices)
    for dim in reversed(dims):
        labels = labels.select(dim, 0)
    shape = shape_of(node)
    for _ in range(len(shape) - labels.ndim):
        labels = labels.unsqueeze(dims[0])
    return labels.expand(shape)


def _index_select(tracer: Tracer, node: Node, x: Any, dim: int, index: Any) -> Any:
    """Places along one dimension are picked; channels that lie along it are frozen, places of a parameter tied."""
    labels = given(tracer, x)
    if isinstance(x, Weight):
        labels = _tied_along(tracer, labels, dim)
    if varies(labels, dim):
        return freeze(tracer, node, x, index)
    return labels.narrow(dim, 0, 1).expand(shape_of(node))


def _gather(tracer: Tracer, node: Node, x: Any, dim: int, index: Any, **_: Any) -> Tensor:
    """Places along one dimension are picked, for each place along the others by itself: channels lie as they did."""
    labels, chosen, shape = given(tracer, x), given(tracer, index), shape_of(node)
    if isinstance(x, Weight):
        labels = _tied_along(tracer, labels, dim)
    if varies(labels, dim) or not shape:
        return freeze(tracer, node, x, index)
    picked = labels.narrow(dim, 0, 1)
    for at, size in enumerate(shape):
        picked = picked if at == dim % len(shape) else picked.narrow(at, 0, size)
    picked = spread(picked).expand(shape)
    apart = any(varies(chosen, at) for at in range(chosen.ndim))  # as when it was spread over as many as there are
    return meet(tracer, node, picked, chosen) if apart else picked


def _grid_sample(tracer: Tracer, node: Node, x: Any, grid: Any, *_: Any) -> Tensor:
    """Places within a channel meet. Where each sample has channels of its own, as heads do, its grid goes with them."""
    x, grid = given(tracer, x), given(tracer, grid)
    if any(varies(x, dim) for dim in range(2, x.ndim)) or (varies(grid, 0) and not varies(x, 0)):
        return freeze(tracer, node, x, grid)
    if varies(grid, 0):
        own = tracer.labels.unite_along(grid, 0)
        small = compact(x, keep=0)
        tracer.labels.unite(small, own.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(small))
    elif any(varies(grid, dim) for dim in range(grid.ndim)):
        tracer.labels.freeze(grid, f"says where all channels are sampled ({location(node)})")
    return spread(_found(tracer, x[(..., *(slice(1),) * (x.ndim - 2))])).expand(shape_of(node))


def _tied_along(tracer: Tracer, labels: Tensor, dim: int) -> Tensor:
    first = labels.narrow(dim, 0, 1)
    tracer.labels.unite(labels, first.expand_as(labels))
    return first.expand(labels.shape)


def _number(tracer: Tracer, node: Any) -> Tensor | None:
    """Return the numbers that ``node`` gives, if the forward says them as they are."""
    while node.op == "call_function" and name_of(node) in SAME and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return tracer.constants.get(node.name)


def _along(tracer: Tracer, node: Node, x: Any, *rest: Any, **named: Any) -> Any:
    """Each element depends on all along one dimension."""
    dim = next((v for v in rest if isinstance(v, int) and not isinstance(v, bool)), named.get("dim", -1))
    reduce_along(tracer, node, given(tracer, x), [dim])
    return _same(tracer, node, x)


def _per_channel(tracer: Tracer, node: Node, x: Any, *rest: Any, **__: Any) -> Any:
    """Places within a channel meet; channels do not, nor places along which a pool's window is one wide."""
    x = given(tracer, x)
    match = PER_CHANNEL.match(name_of(node))
    assert match is not None
    channel = x.ndim - int(match[1]) - 1
    window = rest if re.match("_?(avg|max)_pool", match[0]) else (0,)
    single = [channel + 1 + at for at in _singles(int(match[1]), *window)]
    if all(dim in single for dim in range(x.ndim) if varies(x, dim)):
        return each(node, lambda v: compact(x).expand(v.shape))
    vector = tracer.labels.unite_along(x, channel)
    return each(node, lambda v: along(vector, v.shape, channel))


def _singles(dims: int, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any) -> list[int]:
    """Return the dimensions, of those in which a pool's window moves, that it leaves as they are."""
    window = [
        [given] * dims if isinstance(given, int) else list(given) * (dims // len(given))
        for given in (kernel, stride or kernel, padding)
    ]
    return [at for at, place in enumerate(zip(*window, strict=True)) if place == (1, 1, 0)]


def _pad(tracer: Tracer, node: Node, x: Any, widths: list[int], mode: str = "constant", *_: Any, **__: Any) -> Any:
    """Padding within a channel belongs to it; padding with more channels fixes their number."""
    if mode != "constant":
        return _move(tracer, node, x, widths, mode)
    labels = given(tracer, x)
    for at in range(len(widths) // 2):
        before, after, dim = widths[2 * at], widths[2 * at + 1], labels.ndim - 1 - at
        labels = labels.narrow(dim, max(0, -before), labels.size(dim) - max(0, -before) - max(0, -after))
        labels = _lengthen(tracer, node, spread(labels), dim, max(0, before), max(0, after))
    return spread(labels)


def _lengthen(tracer: Tracer, node: Node, labels: Tensor, dim: int, before: int, after: int) -> Tensor:
    if not before and not after:
        return labels
    shape = list(labels.shape)
    if labels.stride(dim) == 0 or labels.size(dim) == 1:
        shape[dim] += before + after
        return labels.narrow(dim, 0, 1).expand(shape)
    why = f"is tied to channels that {name_of(node)} adds ({location(node)})"
    ends = [tracer.labels.fixed((*shape[:dim], n, *shape[dim + 1 :]), why) for n in (before, after)]
    return torch.cat([ends[0], labels, ends[1]], dim)


def _recurrent(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Gates of one hidden width, whose outputs are read as inputs again."""
    why = f"its hidden width stays: {name_of(node)} reads what it puts out ({location(node)})"
    tracer.unprunable.setdefault(module_of(node) or name_of(node), why)
    return freeze(tracer, node, *args, **kwargs)


def _expand(tracer: Tracer, node: Node, x: Any, *sizes: Any, **named: Any) -> Any:
    """What is spread over as many places as there are channels goes where they go."""
    shape = shape_of(node)
    before = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
    counted = [
        read for read in tracer.reads.of(node) if read.kind == "size" and read.formula.operation in tracer.shapes
    ]
    for read in counted:
        if read.index < len(shape) and before[read.index] == 1 < shape[read.index] and tracer.of_channels(read):
            return meet(tracer, node, given(tracer, x).expand(before), made_along(tracer, read, shape))
    return _move(tracer, node, x, *sizes, **named)


def _expand_as(tracer: Tracer, node: Node, x: Any, other: Any) -> Tensor:
    """What is spread over channels goes where they go, as if it met them."""
    return meet(tracer, node, given(tracer, x), given(tracer, other))


def _constant_pad(tracer: Tracer, node: Node, x: Any, widths: list[int], *_: Any) -> Any:
    return _pad(tracer, node, x, widths)


def _glu(tracer: Tracer, node: Node, x: Any, dim: int = -1) -> Tensor:
    value, gate = given(tracer, x).chunk(2, dim)
    return meet(tracer, node, value, gate)


RULES: dict[str, Rule] = {
    **PRODUCTS,
    **PAIRS,
    **TRANSFORMS,
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(MOVES, _move),
    "expand": _expand,
    "expand_as": _expand_as,
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(ALONG, _along),
    "embedding": _embedding,
    **dict.fromkeys(("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "prelu": _prelu,
    **dict.fromkeys(RECURRENT, _recurrent),
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    "glu": _glu,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "grid_sampler": _grid_sample,
}
