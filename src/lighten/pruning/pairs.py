"""Rules of operators on two sets of features: bilinear layers, cosine similarity."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node

from lighten.pruning.basics import count, freeze, given, meet, reduce_along
from lighten.pruning.labels import along
from lighten.pruning.trace import Tracer, Work
from lighten.pruning.weights import Weight, layer_of


def _bilinear(tracer: Tracer, node: Node, one: Any, other: Any, weight: Any, bias: Any = None) -> Tensor:
    """A layer that multiplies each channel of one input with each of another: weight (out, first, second)."""
    if not isinstance(weight, Weight) or isinstance(bias, Tensor):
        frozen: Tensor = freeze(tracer, node, one, other, weight, bias)
        return frozen
    inputs = []
    for dim, x in ((1, given(tracer, one)), (2, given(tracer, other))):
        inputs.append(tracer.attach(weight, dim, tracer.labels.unite_along(x, -1), "input"))
    outputs = tracer.new_labels(weight, 0)
    if bias is not None:
        tracer.attach(bias, 0, outputs, "bias")
    rows = tuple(one.shape[:-1])
    tracer.work.append(Work(layer_of(weight.name), count(weight.shape) * count(rows), (outputs, *inputs)))
    return along(outputs, (*rows, len(outputs)), -1)


def _cosine_similarity(tracer: Tracer, node: Node, one: Any, other: Any, dim: int = 1, *_: Any, **__: Any) -> Tensor:
    """Sums of products of the same channels: one that is zero adds nothing."""
    labels = meet(tracer, node, given(tracer, one), given(tracer, other))
    return reduce_along(tracer, node, labels, [dim], harmless=True).squeeze(dim)


PAIRS: dict[str, Callable[..., Any]] = {"bilinear": _bilinear, "cosine_similarity": _cosine_similarity}
