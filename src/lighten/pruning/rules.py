"""Rules of operators for channel labels; an operator without a rule freezes the labels that it touches."""

# ruff: noqa: SIM905 - words read better than 40 quoted strings
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from lighten.errors import UserError
from lighten.pruning.labels import along, compact, spread, varies, varies_only
from lighten.pruning.trace import Geometry, Tracer, Weight, Work, layer_of, location, module_of

Rule = Callable[..., Any]

SAME = frozenset(
    "alias clone contiguous detach dropout alpha_dropout feature_dropout feature_alpha_dropout lift_fresh_copy to "
    "_to_copy type_as zero fill".split()
)
MOVES = frozenset(
    "cat concat stack hstack vstack view reshape _unsafe_view view_as reshape_as permute transpose t swapaxes movedim "
    "swapdims moveaxis broadcast_to ravel unsafe_split unsafe_chunk "
    "flatten unflatten squeeze unsqueeze expand expand_as repeat tile repeat_interleave split split_with_sizes chunk "
    "tensor_split unbind slice select narrow flip roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle unfold "
    "diagonal reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d mT mH numpy_T adjoint matrix_H".split()
)
POINTWISE = frozenset(
    "copy hardswish threshold log_sigmoid rrelu_with_noise rsub where masked_fill multiply divide "
    "true_divide absolute negative and or xor fake_quantize_per_tensor_affine".split()
)
"""Those that PyTorch does not tag as pointwise itself."""
REDUCTIONS = frozenset(
    "mean sum amax amin max min var std prod norm linalg_vector_norm logsumexp argmax argmin any all var_mean "
    "std_mean median".split()
)
ALONG = frozenset("softmax _softmax log_softmax _log_softmax cumsum cumprod sort".split())
CONSTANT = frozenset("zeros ones full empty".split())
"""Those that make a tensor of one number."""
PER_CHANNEL = re.compile(r"_?(?:adaptive_)?(?:(?:avg|max|lp)_pool|upsample_[a-z_]+?)([123])d")


def follow(tracer: Tracer) -> Tracer:
    """Label the whole graph, node by node."""
    env: dict[Node, Any] = {}
    last = {used: node for node in tracer.graph.nodes for used in node.all_input_nodes}
    for node in tracer.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "call_function":
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
    tracer.finalize()
    return tracer


def _apply(tracer: Tracer, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the labels of what ``node`` puts out, given those of what it takes."""
    if node.target is operator.getitem:
        return args[0][args[1]]
    if not any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val"))):
        return None
    name = _name(node)
    values = [v for v in tree_leaves(node.meta["val"]) if isinstance(v, Tensor)]
    if any(not isinstance(size, int) for v in values for size in v.shape):
        raise UserError(
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
            if isinstance(part := result[read.index], Tensor) and part.size(dim) == read.value:
                tracer.note_size(read, part, dim)
        elif read.kind == "bound" and _name(node) == "slice" and isinstance(args[0], Tensor):
            dim, start, end = (*args[1:4], *(0, 0, None)[len(args) - 1 :])[:3]
            if read.value in (start, end):
                counted = (0, read.value) if read.value >= 0 else (args[0].size(dim) + read.value, -read.value)
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
        return _make
    return _same if name.endswith("_like") else _freeze


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else str(node.target)
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def _given(tracer: Tracer, value: Any) -> Any:
    return tracer.elements(value) if isinstance(value, Weight) else value


def _freeze(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Freeze whatever goes in, and put out one frozen label."""
    taken = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor | Weight)]
    if not taken:
        return _make(tracer, node)
    why = f"goes through {_name(node)} ({location(node)})"
    for value in taken:
        if isinstance(value, Weight):
            tracer.freeze_weight(value, why)
        else:
            tracer.labels.freeze(value, why)
    return _all_fixed(tracer, node, why)


def _make(tracer: Tracer, node: Node, *_: Any, **__: Any) -> Any:
    """A tensor out of nothing has the size that the forward says: where an attribute says it, that may follow."""
    if _name(node).removeprefix("new_") in CONSTANT:
        shape = _shape(node)
        free = [read.index for read in tracer.reads.of(node) if read.kind == "size" and read.formula.of_attributes]
        if len(free) == 1 and free[0] < len(shape) and shape[free[0]] > 1:
            return along(tracer.labels.fresh(shape[free[0]]), shape, free[0])
    return _all_fixed(tracer, node, f"is tied to what {_name(node)} makes ({location(node)})")


def _all_fixed(tracer: Tracer, node: Node, why: str) -> Any:
    return _each(node, lambda v: tracer.labels.fixed(v.shape, why))


def _each(node: Node, labels: Callable[[Tensor], Tensor]) -> Any:
    """Return the labels of every tensor that ``node`` puts out, in the shape in which it puts them out."""
    return tree_map(lambda v: labels(v) if isinstance(v, Tensor) else None, node.meta["val"])


def _same(tracer: Tracer, node: Node, x: Any, *_: Any, **__: Any) -> Any:
    """Elements keep their places: the labels go through. A parameter in another type is still that parameter."""
    if isinstance(x, Weight) and isinstance(node.meta["val"], Tensor):
        return x
    labels = _given(tracer, x)
    return _each(node, lambda v: labels)


def _move(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Elements change their places: run the operator on the labels themselves."""
    if args and isinstance(args[0], Weight) and not any(isinstance(v, Tensor | Weight) for v in tree_leaves(args[1:])):
        view = args[0].viewed(node.target, *args[1:], **kwargs)  # type: ignore[arg-type]
        if view is not None:
            return view
    args, kwargs = tree_map(lambda v: _given(tracer, v), (args, kwargs))
    args, kwargs = tree_map(lambda v: v[...] if isinstance(v, Tensor) else v, (args, kwargs))  # in place, on a view
    measured = any(isinstance(v, Tensor) for v in tree_leaves((args[1:], kwargs))) and not _name(node).endswith("_as")
    if measured or "dtype" in node.target._overloadname:  # type: ignore[union-attr]
        return _freeze(tracer, node, *args, **kwargs)
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
        return tree_map(lambda v: spread(v.long()) if isinstance(v, Tensor) else v, moved)
    return _freeze(tracer, node, *args, **kwargs)


def _note_parts(tracer: Tracer, node: Node, args: tuple[Any, ...]) -> None:
    """Note where channels are cut into equal parts: if their number follows the width, each part loses as many."""
    labels, name = args[0], _name(node)
    if not isinstance(labels, Tensor):
        return
    if name in ("chunk", "split", "unsafe_chunk", "unsafe_split"):
        dim = next((a for a in args[2:3] if isinstance(a, int)), node.kwargs.get("dim", 0))
        parts = len(node.meta["val"])
        if isinstance(dim, int) and varies_only(labels, dim) and parts > 1 and labels.size(dim) % parts == 0:
            tracer.parts.append(tracer.labels.unite_along(labels, dim).reshape(parts, -1))
    elif name in ("view", "reshape", "unflatten"):
        before, after = labels.shape, _shape(node)
        dim = next((d for d, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
        halved = (*after[:dim], *before[dim : dim + 1], *after[dim + 2 :]) == tuple(before)
        if dim < len(before) and halved and varies_only(labels, dim) and after[dim] * after[dim + 1] == before[dim]:
            tracer.parts.append(tracer.labels.unite_along(labels, dim).reshape(after[dim], -1))
    elif name == "slice" and (args[4:5] or (1,))[0] == 1:
        dim, start, end = list(args[1:4]) + [0, 0, None][len(args[1:4]) :]
        if varies_only(labels, dim) and isinstance(node.args[0], Node):
            tracer.note_slice(node.args[0], dim, labels, start or 0, 2**62 if end is None else end)


def _pointwise(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Any:
    """Elements meet: unite the labels of all operands."""
    operands = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor | Weight)]
    if not operands:
        return _make(tracer, node)
    labels = _given(tracer, operands[0])
    for other in operands[1:]:
        labels = _meet(tracer, node, labels, _given(tracer, other))
    return _each(node, lambda v: labels.expand(v.shape))


def _meet(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Unite two operands, element by element.

    An element that is broadcast over several channels belongs to none of them: it is frozen, and they stay apart.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = (x[(None,) * (len(shape) - x.ndim)] for x in (a, b))
    a_many, b_many = ([d for d, n in enumerate(shape) if n > 1 and x.size(d) == 1] for x in (a, b))
    both = torch.stack(torch.broadcast_tensors(compact(a), compact(b)))
    one, other = tracer.labels.find(both)
    why = f"is broadcast over channels ({location(node)})"
    a_frozen, b_frozen = _differ(other, a_many), _differ(one, b_many)
    tracer.labels.freeze(one[a_frozen], why)
    tracer.labels.freeze(other[b_frozen], why)
    apart = a_frozen | b_frozen
    tracer.labels.unite(one[~apart], other[~apart])
    return torch.where(a_frozen, other, one).expand(shape)


def _differ(labels: Tensor, dims: list[int]) -> Tensor:
    """Say of each element whether the labels differ along ``dims`` at its place."""
    if not dims:
        return torch.zeros_like(labels, dtype=torch.bool)
    return (labels.amin(dims, keepdim=True) != labels.amax(dims, keepdim=True)).expand_as(labels)


def _conv(tracer: Tracer, node: Node, x: Tensor, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Tensor:
    """Consume one label per input channel, issue one per filter; depthwise passes them on."""
    groups = named.get("groups", rest[3] if len(rest) > 3 else 1)
    return _convolve(tracer, node, x, weight, bias, groups=groups, transposed=False)


def _conv_transpose(
    tracer: Tracer, node: Node, x: Tensor, weight: Any, bias: Any = None, *rest: Any, **named: Any
) -> Tensor:
    groups = named.get("groups", rest[3] if len(rest) > 3 else 1)
    return _convolve(tracer, node, x, weight, bias, groups=groups, transposed=True)


def _convolution(tracer: Tracer, node: Node, x: Tensor, weight: Any, bias: Any, *rest: Any) -> Tensor:
    return _convolve(tracer, node, x, weight, bias, groups=rest[5], transposed=rest[3])


def _convolve(tracer: Tracer, node: Node, x: Any, weight: Any, bias: Any, *, groups: int, transposed: bool) -> Tensor:
    if not _owned(tracer, node, weight) or isinstance(bias, Tensor):
        return _freeze(tracer, node, x, weight, bias)
    x = _given(tracer, x)
    channel = x.ndim - (len(weight.shape) - 1)
    inputs = tracer.labels.unite_along(x, channel)
    filters, taken = (1, 0) if transposed else (0, 1)
    if groups > 1 and transposed and weight.shape[0] == groups:
        outputs = tracer.attach(weight, 0, inputs, "filter").repeat_interleave(weight.shape[1])
    elif groups > 1 and transposed:
        tracer.labels.unite_along(inputs.reshape(groups, -1), 1)
        tracer.attach(weight, taken, inputs, "input")
        outputs = tracer.new_labels(weight, filters).repeat(groups)
    elif groups > 1 and weight.shape[1] == 1:
        outputs = tracer.attach(weight, 0, inputs.repeat_interleave(weight.shape[0] // groups), "filter")
    else:
        outputs = tracer.new_labels(weight, filters)
        if groups > 1:
            tracer.labels.unite_along(outputs.reshape(groups, -1), 1)
            inputs = tracer.labels.unite_along(inputs.reshape(groups, -1), 1)
        tracer.attach(weight, taken, inputs, "input")
    if bias is not None:
        tracer.attach(bias, 0, outputs, "bias")
    shape = x.shape if transposed else _shape(node)
    places = _count(shape) // shape[channel]
    axes = tuple(labels for dim in (filters, taken) if (labels := tracer.axis(weight, dim)) is not None)
    geometry = None if transposed else Geometry(tuple(x.shape), tuple(_shape(node)), weight.shape[2:], groups)
    tracer.work.append(Work(layer_of(weight.name), _count(weight.shape) * places, axes, geometry))
    return along(outputs, _shape(node), channel)


def _linear(tracer: Tracer, node: Node, x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Consume the labels of the last dimension, issue one per node."""
    return _dense(tracer, node, x, weight, bias, nodes=0)


def _addmm(tracer: Tracer, node: Node, bias: Any, x: Any, weight: Any, **scales: Any) -> Tensor:
    """The form in which a layer keeps its weight as (in, out)."""
    return _dense(tracer, node, x, weight, bias, nodes=1)


def _matmul(tracer: Tracer, node: Node, x: Any, other: Any) -> Tensor:
    """The product with a parameter is a linear layer, from either side."""
    if isinstance(other, Weight) and len(other.shape) == 2:
        return _dense(tracer, node, x, other, None, nodes=1)
    if isinstance(x, Weight) and len(x.shape) == 2 and len(other.shape) > 1:
        return _dense(tracer, node, other.transpose(-1, -2), x, None, nodes=0).transpose(-1, -2)
    return _contract(tracer, node, _given(tracer, x), _given(tracer, other))


def _grouped_mm(tracer: Tracer, node: Node, x: Any, weight: Any, offs: Any = None, *_: Any, **__: Any) -> Tensor:
    """Each row times one of several matrices, (experts, in, out): linear layers that lose the same channels."""
    if not isinstance(weight, Weight) or len(weight.shape) != 3 or len(x.shape) != 2:
        return _freeze(tracer, node, x, weight, offs)
    x = _given(tracer, x)
    inputs = tracer.attach(weight, 1, tracer.labels.unite_along(x, -1), "input")
    outputs = tracer.new_labels(weight, 2)
    tracer.strided += [inputs, outputs]
    tracer.work.append(Work(layer_of(weight.name), len(x) * len(inputs) * len(outputs), (outputs, inputs)))
    return along(outputs, _shape(node), -1)


def _baddbmm(tracer: Tracer, node: Node, bias: Any, a: Any, b: Any, **_: Any) -> Tensor:
    return _meet(tracer, node, _contract(tracer, node, _given(tracer, a), _given(tracer, b)), _given(tracer, bias))


def _einsum(tracer: Tracer, node: Node, equation: str, operands: list[Any], **_: Any) -> Tensor:
    """A product of two with one index that is summed over: a linear layer, or a product of activations."""
    found = re.fullmatch(r"(\w+),(\w+)->(\w+)", equation.replace(" ", ""))
    one, other, right = found.groups() if found else ("", "", "")
    summed = [c for c in one if c in other and c not in right]
    batch = [c for c in right if c in one and c in other]
    rows, columns = ([c for c in right if c in x and c not in batch] for x in (one, other))
    plain = len(set(one)) == len(one) and len(set(other)) == len(other)
    if (
        not plain
        or not found
        or len(summed) != 1
        or len(columns) != 1
        or {*one, *other} != {*summed, *batch, *rows, *columns}
    ):
        return _freeze(tracer, node, *operands)
    a, b = _given(tracer, operands[0]), operands[1]
    a = a.permute([one.index(c) for c in (*batch, *rows, *summed)])
    order = [other.index(c) for c in (*batch, *summed, *columns)]
    if isinstance(b, Weight) and not batch:
        product = _dense(tracer, node, a, b.viewed(torch.permute, order), None, nodes=1)
    elif len(rows) == 1:
        product = _contract(tracer, node, a, _given(tracer, b).permute(order))
    else:
        return _freeze(tracer, node, *operands)
    return product.permute([[*batch, *rows, *columns].index(c) for c in right])


def _dense(tracer: Tracer, node: Node, x: Any, weight: Any, bias: Any, *, nodes: int) -> Tensor:
    computed = bias if isinstance(bias, Tensor) or (isinstance(bias, Weight) and len(bias.shape) != 1) else None
    if not _owned(tracer, node, weight) or len(weight.shape) != 2:
        return _freeze(tracer, node, x, weight, bias)
    x = _given(tracer, x)
    inputs = tracer.attach(weight, 1 - nodes, tracer.labels.unite_along(x, -1), "input")
    outputs = tracer.new_labels(weight, nodes)
    if bias is not None and computed is None:
        tracer.attach(bias, 0, outputs, "bias")
    rows = _count(x.shape[:-1])
    axes = (outputs, inputs)
    geometry = Geometry((rows, x.shape[-1]), (rows, len(outputs)), (), 1)
    tracer.work.append(Work(layer_of(weight.name), _count(weight.shape) * rows, axes, geometry))
    result = along(outputs, (*x.shape[:-1], len(outputs)), -1)
    return result if computed is None else _meet(tracer, node, result, _given(tracer, computed))


def _owned(tracer: Tracer, node: Node, weight: Any) -> bool:
    """Say whether a layer's weight is a parameter as it is, not computed from others."""
    owned = isinstance(weight, Weight)
    if not owned and isinstance(weight, Tensor) and (layer := module_of(node)):
        tracer.unprunable.setdefault(layer, f"its weight is computed in the forward ({location(node)})")
    return owned


def _embedding(tracer: Tracer, node: Node, weight: Any, indices: Any, *_: Any, **__: Any) -> Tensor:
    if not isinstance(weight, Weight):
        return _freeze(tracer, node, weight, indices)
    return along(tracer.new_labels(weight, 1), _shape(node), -1)


def _batch_norm(tracer: Tracer, node: Node, x: Any, *rest: Any) -> Any:
    """One scale, shift, mean and variance a channel; channels do not meet."""
    weight, bias, mean, variance = rest[:4]
    x = _given(tracer, x)
    inputs = tracer.labels.unite_along(x, 1)
    for tensor, role in ((weight, "norm"), (bias, "shift"), (mean, "statistic"), (variance, "statistic")):
        if isinstance(tensor, Weight):
            tracer.attach(tensor, 0, inputs, role)
        elif isinstance(tensor, Tensor):
            return _freeze(tracer, node, x, weight, bias, mean, variance)
    return _same(tracer, node, x)


def _prelu(tracer: Tracer, node: Node, x: Any, weight: Any) -> Any:
    if not isinstance(weight, Weight):
        return _freeze(tracer, node, x, weight)
    x = _given(tracer, x)
    if weight.shape and weight.shape[0] > 1:
        tracer.attach(weight, 0, tracer.labels.unite_along(x, 1), "scale")
    return x


def _layer_norm(
    tracer: Tracer, node: Node, x: Any, normalized: list[int], weight: Any = None, bias: Any = None, *_: Any
) -> Any:
    """Statistics run over the channels; whether they can leave some of them out, masking shows."""
    x = _given(tracer, x)
    if len(normalized) > 1 or not isinstance(weight, Weight) or _stacked(tracer, x, [-1]):
        _reduce(tracer, node, x, list(range(-len(normalized), 0)))
        return _same(tracer, node, x)
    return _normed(tracer, node, x, tracer.labels.unite_along(x, -1), weight, bias)


def _group_norm(tracer: Tracer, node: Node, x: Any, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Any:
    """Statistics run over each group of channels, which go together; a lone group is as a layer norm's."""
    x = _given(tracer, x)
    inputs = tracer.labels.unite_along(x, 1)
    if not isinstance(weight, Weight) or (weight.shape[0] == groups and groups == 1):
        return _freeze(tracer, node, x, weight, bias)
    if groups > 1:
        tracer.labels.unite_along(inputs.reshape(groups, -1), 0)
    return _normed(tracer, node, x, inputs, weight, bias)


def _normed(tracer: Tracer, node: Node, x: Any, inputs: Tensor, weight: Any, bias: Any) -> Any:
    for tensor, role in ((weight, "norm"), (bias, "shift")):
        if isinstance(tensor, Weight):
            tracer.attach(tensor, 0, inputs, role)
        elif isinstance(tensor, Tensor):
            return _freeze(tracer, node, x, weight, bias)
    return _same(tracer, node, x)


def _attention(tracer: Tracer, node: Node, q: Any, k: Any, v: Any, mask: Any = None, *_: Any, **named: Any) -> Any:
    """Scaled dot-product attention of (…, heads, length, features): a head goes as a whole."""
    q, k, v = (_given(tracer, t) for t in (q, k, v))
    if named.get("enable_gqa"):
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = _contract(tracer, node, q, k.transpose(-1, -2))
    mask = named.get("attn_mask", mask)
    if mask is not None:
        scores = _meet(tracer, node, scores, _given(tracer, mask))
    return _contract(tracer, node, scores, v)


def _contract(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The product of (…, n, k) and (…, k, m): what is summed over is tied, and a matrix of one channel scales another.

    Where channels lie along k they are tied one to one, and the sum belongs to none. Where, besides, each pair of
    matrices has channels of its own (heads), these are one channel: a head goes as a whole. Where none lie along k,
    rows and columns of the result keep the channels of the operand that has them, tied to the other's.
    """
    if a.ndim == 1 or b.ndim == 1:
        return _freeze(tracer, node, a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    macs = _count(batch) * a.shape[-2] * a.shape[-1] * b.shape[-1]
    a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    if (varies(a, -1) or varies(b, -2)) and not any(varies(t, d) for t in (a, b) for d in range(len(batch))):
        inner = tracer.labels.unite_along(a, -1)
        tracer.labels.unite(inner, tracer.labels.unite_along(b, -2))
        tracer.work.append(Work(module_of(node), macs, (inner,)))
        return tracer.labels.fixed(_product(a, b), f"{_name(node)} mixes its channels ({location(node)})")
    if varies(a, -1) or varies(b, -2):
        whole = torch.cat([_matrices(a), _matrices(b)], -1)
        labels = tracer.labels.unite_along(whole.flatten(0, -2), 0)
        tracer.work.append(Work(module_of(node), macs, (labels,)))
        return labels.reshape(*whole.shape[:-1], 1, 1).expand(*batch, a.shape[-2], b.shape[-1])
    product = _scaled(tracer, node, a[..., :1], b[..., :1, :])
    tracer.work.append(Work(module_of(node), macs, (compact(product).flatten(),)))
    return product.expand(*batch, a.shape[-2], b.shape[-1])


def _count(shape: Iterable[int]) -> int:
    return math.prod(shape)


def _product(a: Tensor, b: Tensor) -> torch.Size:
    return torch.Size([*a.shape[:-1], b.shape[-1]])


def _scaled(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Return the labels of an outer product; a factor that is one channel throughout cannot go, and ties nothing."""
    for one, other in ((a, b), (b, a)):
        roots = torch.unique(tracer.labels.find(compact(one)))
        if len(roots) == 1:
            tracer.labels.freeze(roots, f"is broadcast over channels ({location(node)})")
            return other
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = torch.broadcast_tensors(compact(a), compact(b))
    tracer.labels.unite(a, b)
    return tracer.labels.find(a).expand(shape)


def _matrices(labels: Tensor) -> Tensor:
    """Return one row of labels for each matrix of a batch."""
    small = labels
    for dim in (-1, -2):
        if not varies(small, dim):
            small = small.narrow(dim, 0, 1)
    return small.flatten(-2)


def _reduction(tracer: Tracer, node: Node, x: Any, *rest: Any, **named: Any) -> Any:
    """Dimensions go; channels that meet in the result are frozen."""
    x = _given(tracer, x)
    if rest and isinstance(rest[0], Tensor | Weight):  # torch.max(x, y)
        return _pointwise(tracer, node, x, rest[0])
    name = _name(node)
    at = 1 if name in ("norm", "linalg_vector_norm") else 0
    dims = named.get("dim", rest[at] if len(rest) > at else None)
    dims = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    dims = dims if isinstance(dims, list | tuple) and dims else list(range(x.ndim))
    reduced = _reduce(tracer, node, x, list(dims))
    return _each(node, lambda v: spread(reduced.reshape(v.shape)))


def _reduce(tracer: Tracer, node: Node, x: Tensor, dims: list[int]) -> Tensor:
    """Return the labels with ``dims`` at size 1.

    Labels that differ along ``dims`` alone are frozen. Where they also differ along others (heads, or whole stacked
    tensors) those that meet are one channel: they go together, and the result goes with them.
    """
    if not x.ndim:
        return x
    gone = {dim % x.ndim for dim in dims}
    if _stacked(tracer, x, dims):
        small = compact(x)
        for dim in gone:
            tracer.labels.unite(small, small.narrow(dim, 0, 1).expand_as(small))
    found = tracer.labels.find(compact(x))
    tracer.labels.freeze(found[_differ(found, dims)], f"{_name(node)} mixes its channels ({location(node)})")
    return found.amin(dims, keepdim=True).expand([1 if d in gone else n for d, n in enumerate(x.shape)])


def _stacked(tracer: Tracer, x: Tensor, dims: list[int]) -> bool:
    """Say whether channels of layers lie along other dimensions than ``dims`` too, as those of several heads do."""
    gone = {dim % x.ndim for dim in dims}
    others = [dim for dim in range(x.ndim) if dim not in gone]
    if not others:
        return False
    found = tracer.labels.find(compact(x))
    filters = torch.zeros(tracer.labels.size, dtype=torch.bool)
    for axis in tracer.axes.values():
        if axis.role == "filter":
            filters[tracer.labels.find(axis.labels)] = True
    high = torch.where(filters[found], found, -1).amax(others)
    low = torch.where(filters[found], found, tracer.labels.size).amin(others)
    return bool((low < high).any())


def _index(tracer: Tracer, node: Node, x: Any, indices: Any) -> Any:
    """Places are picked by tensors; where channels do not lie along them, they stay as they are.

    Of a parameter, such as a table of biases, any place may come anywhere: those along the picked dimensions are tied.
    """
    labels = _given(tracer, x)
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in dims if isinstance(x, Weight) else ():
        first = labels.narrow(dim, 0, 1)
        tracer.labels.unite(labels, first.expand_as(labels))
        labels = first.expand(labels.shape)
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    if not adjacent or any(varies(labels, dim) for dim in dims):
        return _freeze(tracer, node, x, *indices)
    for dim in reversed(dims):
        labels = labels.select(dim, 0)
    shape = _shape(node)
    for _ in range(len(shape) - labels.ndim):
        labels = labels.unsqueeze(dims[0])
    return labels.expand(shape)


def _along(tracer: Tracer, node: Node, x: Any, *rest: Any, **named: Any) -> Any:
    """Each element depends on all along one dimension."""
    dim = next((v for v in rest if isinstance(v, int) and not isinstance(v, bool)), named.get("dim", -1))
    _reduce(tracer, node, _given(tracer, x), [dim])
    return _same(tracer, node, x)


def _per_channel(tracer: Tracer, node: Node, x: Any, *_: Any, **__: Any) -> Any:
    """Places within a channel meet; channels do not."""
    x = _given(tracer, x)
    match = PER_CHANNEL.match(_name(node))
    assert match is not None
    channel = x.ndim - int(match[1]) - 1
    vector = tracer.labels.unite_along(x, channel)
    return _each(node, lambda v: along(vector, v.shape, channel))


def _pad(tracer: Tracer, node: Node, x: Any, widths: list[int], mode: str = "constant", *_: Any, **__: Any) -> Any:
    """Padding within a channel belongs to it; padding with more channels fixes their number."""
    if mode != "constant":
        return _move(tracer, node, x, widths, mode)
    labels = _given(tracer, x)
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
    why = f"is tied to channels that {_name(node)} adds ({location(node)})"
    ends = [tracer.labels.fixed((*shape[:dim], n, *shape[dim + 1 :]), why) for n in (before, after)]
    return torch.cat([ends[0], labels, ends[1]], dim)


def _constant_pad(tracer: Tracer, node: Node, x: Any, widths: list[int], *_: Any) -> Any:
    return _pad(tracer, node, x, widths)


def _glu(tracer: Tracer, node: Node, x: Any, dim: int = -1) -> Tensor:
    value, gate = _given(tracer, x).chunk(2, dim)
    return _meet(tracer, node, value, gate)


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "convolution": _convolution,
    "linear": _linear,
    "addmm": _addmm,
    "mm": _matmul,
    "matmul": _matmul,
    "bmm": _matmul,
    "baddbmm": _baddbmm,
    "grouped_mm": _grouped_mm,
    "grouped_mm_fallback": _grouped_mm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "prelu": _prelu,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    "glu": _glu,
    "index": _index,
}
