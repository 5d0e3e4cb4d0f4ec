"""Weights that a forward computes from parameters: by weight or spectral norm, under a mask, times a scale."""

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from lighten.pruning.operators import MOVES, SAME, name_of
from lighten.pruning.trace import Tracer
from lighten.pruning.weights import Derived, Member, Weight

WEIGHT_OF = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "linear", "mm", "matmul"), 1),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1),
    "addmm": 2,
}
"""Which argument of a layer is its weight."""
MAX_TRIALS = 64
"""How many ways in which parameters may lie along one dimension of the weight are tried at most."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""What two runs may differ by that compute the same in another order; 0.05 in 16 bits."""


def computed_weights(tracer: Tracer) -> dict[Node, Derived | None]:
    """Return the weights that layers are given and that are computed from parameters, buffers and constants alone.

    What a parameter has to do with the channels of such a weight is found by running that part of the graph: channels
    of the weight in another order must be what the parameters in that order give, and a channel of zeros in some
    parameters must give one in the weight.

    Returns:
        The weights by their nodes; for the nodes that lead to them, None.
    """
    pure: set[Node] = set()
    for node in tracer.graph.nodes:
        known = node.op == "placeholder" and (node.name in tracer.constants or _parameter(tracer, node) is not None)
        made = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
        if known or (made and all(used in pure for used in node.all_input_nodes)):
            pure.add(node)
    found: dict[Node, Derived | None] = {}
    inside: set[Node] = set()
    for node in tracer.graph.nodes:
        at = WEIGHT_OF.get(name_of(node)) if node.op == "call_function" else None
        weight = node.args[at] if at is not None and at < len(node.args) else None
        if not isinstance(weight, Node) or weight not in pure or weight.op != "call_function" or node in pure:
            continue
        nodes = _leading_to(weight, pure)
        if weight in found or all(name_of(each) in MOVES | SAME for each in nodes):
            continue
        derived = _Function(tracer, nodes, weight).derived()
        if derived is not None:
            found[weight] = derived
            inside.update(nodes)
    return {**dict.fromkeys(_only_for(inside, found)), **found}


def _parameter(tracer: Tracer, node: Node) -> Weight | None:
    value = tracer.placeholder_labels(node) if node.name not in tracer.constants else None
    return value if isinstance(value, Weight) else None


def _leading_to(weight: Node, pure: set[Node]) -> list[Node]:
    """Return the nodes that compute ``weight``, in order."""
    found: dict[Node, None] = {}
    stack = [weight]
    while stack:
        node = stack.pop()
        if node.op == "call_function" and node not in found:
            found[node] = None
            stack.extend(node.all_input_nodes)
    return [node for node in weight.graph.nodes if node in found]


def _only_for(inside: set[Node], weights: Mapping[Node, Any]) -> set[Node]:
    """Return the nodes whose results nothing else reads."""
    only = set(inside)
    while True:
        others = {node for node in only if node not in weights and any(user not in only for user in node.users)}
        if not others:
            return only
        only -= others


class _Function:
    """The part of a graph that computes one weight, run on other values."""

    def __init__(self, tracer: Tracer, nodes: Sequence[Node], weight: Node) -> None:
        self._tracer, self._nodes, self._weight = tracer, nodes, weight
        generator = torch.Generator().manual_seed(0)
        taken = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used.op == "placeholder")
        self._own: dict[Node, Weight] = {}
        self._values: dict[Node, Tensor] = {}
        for used in taken:
            own = _parameter(tracer, used)
            if own is None:
                self._values[used] = tracer.constants[used.name]
                continue
            self._own[used] = own
            value = tracer.tensors[own.name].detach()
            drawn = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
            self._values[used] = drawn if value.is_floating_point() else value

    @torch.no_grad()
    def derived(self) -> Derived | None:
        """Return the weight, with what lies along each of its dimensions; None where nothing can be said of any."""
        shape = tuple(self._weight.meta["val"].shape)
        parameters = [used for used, own in self._own.items() if own.name in self._tracer.parameters]
        if len(shape) < 2 or not parameters or any(node.is_impure() for node in self._nodes):
            return None
        main = max(parameters, key=lambda used: math.prod(self._own[used].whole))
        try:
            members = {dim: self._along(dim, shape[dim], main) for dim in (0, 1)}
        except Exception:  # what cannot run on other values
            return None
        return Derived.of_members(self._own[main].name, shape, members) if any(members.values()) else None

    def _along(self, dim: int, size: int, main: Node) -> tuple[Member, ...]:
        """Return what lies along ``dim`` of the weight."""
        if size == 1:
            return ()
        base = self._run(self._values)
        order = torch.arange(size).roll(1)
        order[-2:] = order[-2:].flip(0)
        for places in itertools.islice(self._assignments(dim, size), MAX_TRIALS):
            if main not in places:
                continue
            moved = {used: _picked(self._values[used], *place, order) for used, place in places.items()}
            if _equal(self._run({**self._values, **moved}), base.index_select(dim, order.to(base.device))):
                return self._members(dim, places, main)
        return ()

    def _assignments(self, dim: int, size: int) -> Iterator[dict[Node, tuple[int, int]]]:
        """Yield which dimension of each parameter may lie along ``dim``, and how many of its places are one channel."""
        ndim = self._weight.meta["val"].ndim
        options = []
        for used, own in self._own.items():
            dims = [(d, n // size) for d, n in enumerate(own.whole) if n % size == 0 and n]
            same = len(own.whole) == ndim
            first = [place for place in dims if same and place[0] == dim]
            ordered = [*first, *sorted(set(dims) - set(first), key=operator.itemgetter(1, 0)), None]
            options.append([(used, place) for place in ordered])
        for chosen in itertools.product(*options):
            yield {used: place for used, place in chosen if place is not None}

    def _members(self, dim: int, places: Mapping[Node, tuple[int, int]], main: Node) -> tuple[Member, ...]:
        """Return what lies along a dimension, and what of it masks zero: all parameters, or the one that suffices."""
        parameters = [used for used in places if self._own[used].name in self._tracer.parameters]
        zeroed: Sequence[Node] | None = next(
            (each for each in (parameters, *([used] for used in parameters)) if self._vanishes(dim, places, each)), None
        )
        if zeroed is None:
            return ()
        first = main if main in zeroed else zeroed[0]

        def role(used: Node) -> str | None:
            if used in zeroed:
                return None if used is first else "scale"
            return "direction" if used in parameters else "statistic"

        ordered = sorted(places, key=lambda used: used is not first)
        return tuple(Member(self._own[used], *places[used], role(used)) for used in ordered)

    def _vanishes(self, dim: int, places: Mapping[Node, tuple[int, int]], zeroed: Sequence[Node]) -> bool:
        """Say whether a channel of zeros in these parameters is one in the weight."""
        others = dict(self._values)
        for used in zeroed:
            at, times = places[used]
            others[used] = self._values[used].clone()
            others[used].narrow(at, 0, times).zero_()
        found = self._run(others)
        return bool(found.isfinite().all()) and not bool(found.select(dim, 0).any())

    def _run(self, values: Mapping[Node, Tensor]) -> Tensor:
        env: dict[Node, Any] = {used: value.clone() for used, value in values.items()}
        for node in self._nodes:
            args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        result: Tensor = env[self._weight]
        return result


def _picked(value: Tensor, dim: int, times: int, order: Tensor) -> Tensor:
    """Return ``value`` with its channels of ``times`` places each in another order."""
    places = (order[:, None] * times + torch.arange(times)).flatten()
    return value.index_select(dim, places.to(value.device))


def _equal(one: Tensor, other: Tensor) -> bool:
    limit = TOLERANCES.get(one.dtype, 0.05)
    return torch.allclose(one.double(), other.double(), rtol=limit, atol=limit)
