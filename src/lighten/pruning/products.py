"""Rules of products: convolutions, linear layers, matrix products, einsum and attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lighten.pruning.basics import count, freeze, given, meet, reduce_along, shape_of
from lighten.pruning.einsum import Pair, terms_of
from lighten.pruning.labels import along, compact, spread, varies
from lighten.pruning.operators import name_of
from lighten.pruning.trace import Geometry, Tracer, Work, location, module_of
from lighten.pruning.weights import Weight, layer_of


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
        return freeze(tracer, node, x, weight, bias)
    x = given(tracer, x)
    channel = x.ndim - (len(weight.shape) - 1)
    kernel, after = (1,) * (channel + 1) + tuple(weight.shape[2:]), shape_of(node)
    apart = [dim for dim in range(x.ndim) if varies(x, dim)]
    if apart and all(dim != channel and kernel[dim] == 1 and after[dim] == x.shape[dim] for dim in apart):
        return _mixed_places(tracer, node, x, weight, channel, after)
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
    shape = x.shape if transposed else shape_of(node)
    places = count(shape) // shape[channel]
    axes = tuple(labels for dim in (filters, taken) if (labels := tracer.axis(weight, dim)) is not None)
    geometry = None if transposed else Geometry(tuple(x.shape), tuple(shape_of(node)), weight.shape[2:], groups)
    tracer.work.append(Work(layer_of(weight.name), count(weight.shape) * places, axes, geometry))
    return along(outputs, shape_of(node), channel)


def _linear(tracer: Tracer, node: Node, x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Consume the labels of the last dimension, issue one per node."""
    return _dense(tracer, node, x, weight, bias, nodes=0)


def _addmm(tracer: Tracer, node: Node, bias: Any, x: Any, weight: Any, **scales: Any) -> Tensor:
    """The form in which a layer keeps its weight as (in, out)."""
    return _dense(tracer, node, x, weight, bias, nodes=1)


def _matmul(tracer: Tracer, node: Node, x: Any, other: Any) -> Tensor:
    """The product with a parameter is a linear layer, from either side; with matrices picked from one, several."""
    if isinstance(other, Weight) and (other.picked or _of_experts(x, other)):
        return _experts(tracer, x, other, taken=1, put_out=2)
    if isinstance(x, Weight) and x.picked:
        return _experts(tracer, given(tracer, other).transpose(-1, -2), x, taken=2, put_out=1).transpose(-1, -2)
    if isinstance(other, Weight) and len(other.shape) == 2:
        return _dense(tracer, node, x, other, None, nodes=1)
    if isinstance(x, Weight) and len(x.shape) == 2 and len(other.shape) > 1:
        return _dense(tracer, node, other.transpose(-1, -2), x, None, nodes=0).transpose(-1, -2)
    return _contract(tracer, node, given(tracer, x), given(tracer, other))


def _of_experts(x: Any, weight: Weight) -> bool:
    """Say whether a parameter holds a matrix for each expert, all of which are given the same channels."""
    batched = isinstance(x, Tensor) and x.ndim == 3 and not varies(x, 0)
    return batched and len(weight.shape) == 3 and weight.shape == weight.whole and varies(x, -1)


def _grouped_mm(tracer: Tracer, node: Node, x: Any, weight: Any, offs: Any = None, *_: Any, **__: Any) -> Tensor:
    """Each row times the matrix of its expert, (experts, in, out), in steps that the kernel's strides allow."""
    if not isinstance(weight, Weight) or len(weight.shape) != 3 or len(x.shape) != 2:
        return freeze(tracer, node, x, weight, offs)
    outputs = _experts(tracer, x, weight, taken=1, put_out=2)
    tracer.strided += [labels for dim in (1, 2) if (labels := tracer.axis(weight, dim)) is not None]
    return outputs


def _experts(tracer: Tracer, x: Any, weight: Weight, *, taken: int, put_out: int) -> Tensor:
    """Several linear layers in one parameter, which lose the same channels."""
    x = given(tracer, x)
    inputs = tracer.attach(weight, taken, tracer.labels.unite_along(x, -1), "input")
    outputs = tracer.new_labels(weight, put_out)
    macs = count(x.shape) * len(outputs)
    tracer.work.append(Work(layer_of(weight.name), macs, (outputs, inputs)))
    return along(outputs, (*x.shape[:-1], len(outputs)), -1)


def _baddbmm(tracer: Tracer, node: Node, bias: Any, a: Any, b: Any, **_: Any) -> Tensor:
    return meet(tracer, node, _contract(tracer, node, given(tracer, a), given(tracer, b)), given(tracer, bias))


def _einsum(tracer: Tracer, node: Node, equation: str, operands: list[Any], **_: Any) -> Tensor:
    """A product of any number, two by two: with a parameter a linear layer, else a batch of matrix products."""
    found = terms_of(equation, [len(operand.shape) for operand in operands])
    if found is None:
        return freeze(tracer, node, *operands)
    terms, right = found
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        if any(sizes.setdefault(c, size) != size for c, size in zip(term, operand.shape, strict=True)):
            return freeze(tracer, node, *operands)  # broadcast
    product, term = operands[0], terms[0]
    for i, (other, operand) in enumerate(zip(terms[1:], operands[1:], strict=True), 2):
        wanted = "".join(c for c in dict.fromkeys(term + other) if c in right or any(c in t for t in terms[i:]))
        if isinstance(product, Weight) and not isinstance(operand, Weight):
            product, operand, term, other = operand, product, other, term
        product, term = _einsum_of_two(tracer, node, term, other, wanted, product, operand), wanted
    labels = _summed(tracer, node, given(tracer, product), [i for i, c in enumerate(term) if c not in right])
    term = "".join(c for c in term if c in right)
    return labels.permute([term.index(c) for c in right])


def _einsum_of_two(tracer: Tracer, node: Node, one: str, other: str, right: str, a: Any, b: Any) -> Tensor:
    pair = Pair.of(one, other, right)
    batch, rows, columns, summed = pair.batch, pair.rows, pair.columns, pair.summed
    a = _summed(tracer, node, given(tracer, a), [one.index(c) for c in pair.alone[0]])
    one = "".join(c for c in one if c not in pair.alone[0])
    layer = isinstance(b, Weight) and not pair.alone[1] and summed and columns
    if isinstance(b, Weight) and layer and not any(varies(a, one.index(c)) for c in batch):
        order = [other.index(c) for c in (*summed, *columns)]
        matrix = len(order) == 2 and not batch
        a = a.permute([one.index(c) for c in (*batch, *rows, *summed)])
        if matrix:
            product = _dense(tracer, node, a, b.viewed(torch.permute, order), None, nodes=1)
        else:
            product = _dense_of_many(tracer, node, a, b, [order[: len(summed)], order[len(summed) :]])
        shape = product.shape
    else:
        b = _summed(tracer, node, given(tracer, b), [other.index(c) for c in pair.alone[1]])
        other = "".join(c for c in other if c not in pair.alone[1])
        a = a.permute([one.index(c) for c in (*batch, *rows, *summed)])
        b = b.permute([other.index(c) for c in (*batch, *summed, *columns)])
        shape = torch.Size([*a.shape[: len(batch) + len(rows)], *b.shape[len(batch) + len(summed) :]])
        a, b = (_as_matrices(t, len(batch), n) for t, n in ((a, len(rows)), (b, len(summed))))
        product = spread(_contract(tracer, node, a, b).reshape(shape))
    return product.permute([(batch + rows + columns).index(c) for c in right])


def _as_matrices(labels: Tensor, batch: int, rows: int) -> Tensor:
    """Return labels (batch…, rows…, columns…) as (batch…, row, column)."""
    small, shape = compact(labels), labels.shape
    halves = (range(batch, batch + rows), range(batch + rows, len(shape)))
    full = small.expand([shape[d] if any(varies(labels, e) for h in halves if d in h for e in h) else n
                         for d, n in enumerate(small.shape)])  # fmt: skip
    sizes = [[count([x.shape[d] for d in half]) for half in halves] for x in (full, labels)]
    matrices: Tensor = full.reshape(*full.shape[:batch], *sizes[0])
    return matrices.expand(*shape[:batch], *sizes[1])


def _summed(tracer: Tracer, node: Node, labels: Tensor, dims: list[int]) -> Tensor:
    """Return the labels of a sum over ``dims``, which go."""
    if not dims:
        return labels
    reduced = reduce_along(tracer, node, labels, dims, harmless=True)
    return reduced.squeeze(dims)


def _dense_of_many(tracer: Tracer, node: Node, x: Tensor, weight: Weight, dims: list[list[int]]) -> Tensor:
    """A linear layer whose weight has several dimensions of inputs or outputs, such as heads and features.

    Along further dimensions lie several such layers, as of experts. Channels lie along one dimension of each kind: that
    in which the inputs differ, and the first of the outputs; along the others they go as wholes.
    """
    taken, put_out = dims
    first = x.ndim - len(taken)
    at = next((d for d in range(first, x.ndim) if varies(x, d)), first)
    inputs = tracer.attach(weight, taken[at - first], tracer.labels.unite_along(x, at), "input")
    place = next((i for i, d in enumerate(put_out) if weight.shape[d] > 1), 0)
    outputs = tracer.new_labels(weight, put_out[place])
    rows = x.shape[:first]
    macs = count(weight.shape[d] for d in (*taken, *put_out)) * count(rows)
    tracer.work.append(Work(layer_of(weight.name), macs, (outputs, inputs)))
    return along(outputs, (*rows, *(weight.shape[d] for d in put_out)), first + place)


def _dense(tracer: Tracer, node: Node, x: Any, weight: Any, bias: Any, *, nodes: int) -> Tensor:
    computed = bias if isinstance(bias, Tensor) or (isinstance(bias, Weight) and len(bias.shape) != 1) else None
    if not _owned(tracer, node, weight) or len(weight.shape) != 2:
        return freeze(tracer, node, x, weight, bias)
    x = given(tracer, x)
    if not varies(x, -1) and any(varies(x, dim) for dim in range(x.ndim - 1)):
        return _mixed_places(tracer, node, x, weight, -1, (*x.shape[:-1], weight.shape[nodes]))
    inputs = tracer.attach(weight, 1 - nodes, tracer.labels.unite_along(x, -1), "input")
    outputs = tracer.new_labels(weight, nodes)
    if bias is not None and computed is None:
        tracer.attach(bias, 0, outputs, "bias")
    rows = count(x.shape[:-1])
    axes = (outputs, inputs)
    geometry = Geometry((rows, x.shape[-1]), (rows, len(outputs)), (), 1)
    tracer.work.append(Work(layer_of(weight.name), count(weight.shape) * rows, axes, geometry))
    result = along(outputs, (*x.shape[:-1], len(outputs)), -1)
    return result if computed is None else meet(tracer, node, result, given(tracer, computed))


def _mixed_places(tracer: Tracer, node: Node, x: Tensor, weight: Weight, dim: int, shape: Sequence[int]) -> Tensor:
    """A layer over places (tokens) along ``dim`` of channels that lie along other dimensions: they pass through it.

    Its own nodes are places too, and stay.
    """
    why = f"mixes places, not channels ({location(node)})"
    tracer.freeze_weight(weight, why)
    tracer.unprunable.setdefault(layer_of(weight.name), why)
    macs = count(weight.shape) * count(x.shape) // x.shape[dim]
    tracer.work.append(Work(layer_of(weight.name), macs, (compact(x).flatten(),)))
    return compact(x).expand(shape)


def _owned(tracer: Tracer, node: Node, weight: Any) -> bool:
    """Say whether a layer's weight is a parameter as it is, not computed from others."""
    owned = isinstance(weight, Weight)
    if not owned and isinstance(weight, Tensor) and (layer := module_of(node)):
        tracer.unprunable.setdefault(layer, f"its weight is computed in the forward ({location(node)})")
    return owned


def _attention(tracer: Tracer, node: Node, q: Any, k: Any, v: Any, mask: Any = None, *_: Any, **named: Any) -> Any:
    """Scaled dot-product attention of (…, heads, length, features): a head goes as a whole."""
    q, k, v = (given(tracer, t) for t in (q, k, v))
    if named.get("enable_gqa"):
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = _contract(tracer, node, q, k.transpose(-1, -2))
    mask = named.get("attn_mask", mask)
    if mask is not None:
        scores = meet(tracer, node, scores, given(tracer, mask))
    return _contract(tracer, node, scores, v)


def _contract(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The product of (…, n, k) and (…, k, m): what is summed over is tied, and a matrix of one channel scales another.

    Where channels lie along k they are tied one to one, and the sum belongs to none. Where, besides, each pair of
    matrices has channels of its own (heads), these are one channel: a head goes as a whole. Where none lie along k,
    rows and columns of the result keep the channels of the operand that has them, tied to the other's.
    """
    if a.ndim == 1 or b.ndim == 1:
        return freeze(tracer, node, a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    macs = count(batch) * a.shape[-2] * a.shape[-1] * b.shape[-1]
    a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    over = any(varies(t, d) for t in (a, b) for d in range(len(batch)))
    if not over and varies(a, -1) and varies(a, -2) and tracer.several(a, [-1]):  # heads among the rows
        tracer.labels.freeze(b, f"is shared by all heads ({location(node)})")
        row = a[..., :1]
        tracer.labels.unite(compact(a), compact(row).expand_as(compact(a)))
        tracer.work.append(Work(module_of(node), macs, (compact(row).flatten(),)))
        return row.expand(_product(a, b))
    for one, other, summed, free in ((b, a, -2, -1), (a, b, -1, -2)):
        if not over and all(varies(t, summed) and not varies(t, free) for t in (one, other)):
            tracer.labels.freeze(one, f"is shared by all channels ({location(node)})")
            kept = other.narrow(free, 0, 1)
            tracer.work.append(Work(module_of(node), macs, (compact(kept).flatten(),)))
            return kept.expand(_product(a, b))
    if (varies(a, -1) or varies(b, -2)) and not over:
        inner = tracer.labels.unite_along(a, -1)
        tracer.labels.unite(inner, tracer.labels.unite_along(b, -2))
        tracer.work.append(Work(module_of(node), macs, (inner,)))
        return tracer.labels.fixed(_product(a, b), f"{name_of(node)} mixes its channels ({location(node)})")
    if varies(a, -1) or varies(b, -2):
        whole = torch.cat([_matrices(t) for t in _of_heads(tracer, node, a, b)], -1)
        labels = tracer.labels.unite_along(whole.flatten(0, -2), 0)
        tracer.work.append(Work(module_of(node), macs, (labels,)))
        return labels.reshape(*whole.shape[:-1], 1, 1).expand(*batch, a.shape[-2], b.shape[-1])
    heads = _of_heads(tracer, node, a[..., :1], b[..., :1, :])
    product = heads[0] if len(heads) == 1 else _scaled(tracer, node, *heads)
    tracer.work.append(Work(module_of(node), macs, (compact(product).flatten(),)))
    return product.expand(*batch, a.shape[-2], b.shape[-1])


def _of_heads(tracer: Tracer, node: Node, a: Tensor, b: Tensor) -> list[Tensor]:
    """Return those of two factors whose channels can go: not the keys and values that all heads share."""
    over = [any(varies(t, d) for d in range(t.ndim - 2)) for t in (a, b)]
    inside = [varies(t, -1) or varies(t, -2) for t in (a, b)]
    for one, other, of in ((0, 1, b), (1, 0, a)):
        if over[one] and not over[other] and inside[other]:
            tracer.labels.freeze(of, f"is shared by all heads ({location(node)})")
            return [(a, b)[one]]
    return [a, b]


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


PRODUCTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "convolution": _convolution,
    "linear": _linear,
    "addmm": _addmm,
    "mm": _matmul,
    "matmul": _matmul,
    "bmm": _matmul,
    "baddbmm": _baddbmm,
    **dict.fromkeys(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"), _grouped_mm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
