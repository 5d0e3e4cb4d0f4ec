"""Norms as wholes: calls of modules in which channels meet, recognised by what they compute."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from lighten.pruning.labels import along, varies
from lighten.pruning.operators import ALONG, NORMS, REDUCTIONS, SAME, name_of
from lighten.pruning.trace import Tracer
from lighten.pruning.weights import Weight

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""What two runs of a norm may differ by that compute the same in another order; 0.05 in 16 bits."""


@dataclass(frozen=True)
class _Call:
    """One call of a module without modules of its own: its nodes, what they take from outside, what they put out."""

    module: str
    nodes: tuple[Node, ...]
    taken: tuple[Node, ...]
    out: Node | None

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> "_Call":
        begin = next(i for i, node in enumerate(nodes) if not _passes(node))
        nodes, inside = nodes[begin:], set(nodes[begin:])
        taken = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in inside)
        out = [node for node in nodes if any(user not in inside for user in node.users)]
        return cls(_stack(nodes[0])[-1][1], tuple(nodes), tuple(taken), out[0] if len(out) == 1 else None)


class Regions:
    """Norms whose channels meet in operators that would else freeze them.

    A call counts as one where, of ``size`` channels along one dimension of all that it takes and puts out, each place
    of the output belongs to the channel at the same place of the input, and depends on the others only as a set: with
    channels and parameters in another order it puts out the same in that order. So it can be run on some of the
    channels alone, which is what masking it means, and what the cut module does.

    Args:
        tracer: whose graph is followed.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        first: dict[int, str] = {}
        for name, module in tracer.modules.items():
            first.setdefault(id(module), name)
        self._first = {name: first[id(module)] for name, module in tracer.modules.items()}
        self._calls = _calls(tracer)
        self._begin = {call.nodes[0]: call for call in self._calls}
        self._followed: Counter[str] = Counter()
        self._dims: dict[str, int] = {}
        self._known: dict[str, dict[int, str] | None] = {}

    def enter(self, node: Node, env: Mapping[Node, Any]) -> dict[Node, Any]:
        """Return the labels of all nodes of the norm that begins at ``node``; none where none does."""
        call = self._begin.get(node)
        if call is None or call.out is None or any(used not in env for used in call.taken):
            return {}
        given = {used: env[used] for used in call.taken}
        dims = {used: dim for used, labels in given.items() if (dim := self._channels(labels)) is not None}
        roles = self._roles(call, given, dims)
        if roles is None:
            return {}
        return {**dict.fromkeys(call.nodes), call.out: self._labels(call, given, dims, roles)}

    def settle(self) -> None:
        """Freeze the norms that are also called in ways that are not followed as wholes."""
        calls = Counter(self._first[call.module] for call in self._calls)
        for name, dim in self._dims.items():
            if calls[name] != self._followed[name]:
                why = f"goes through {name}, which is also called otherwise"
                self._tracer.labels.freeze(self._tracer.axes[name, dim].labels, why)

    def _roles(self, call: _Call, given: Mapping[Node, Any], dims: Mapping[Node, int]) -> dict[int, str] | None:
        """Return the role of each parameter, by its place in what the call takes; None if the call is no norm."""
        out = call.out.meta.get("val") if call.out is not None else None
        active = [used for used in dims if isinstance(given[used], Tensor)]
        places = {_place(given[used], dims[used]) for used in active}
        sizes = {given[used].shape[dim] for used, dim in dims.items()}
        if len(places) != 1 or len(sizes) != 1 or not isinstance(out, Tensor):
            return None
        (place,), (size,) = places, sizes
        name = self._first[call.module]
        if out.ndim <= place or out.shape[place] != size or self._dims.get(name, place) != place:
            return None
        if not all(self._known_value(used, given[used], name) for used in call.taken if used not in active):
            return None
        key = _key(call, dims)
        if key not in self._known:
            self._known[key] = _Trial(call, given, dims, place, self._tracer).roles()
        return self._known[key]

    def _channels(self, labels: Any) -> int | None:
        """Return the dimension along which channels lie; None where there is none, or several, such as heads."""
        if isinstance(labels, Weight):
            dims = [dim for dim, size in enumerate(labels.shape) if size > 1]
        elif isinstance(labels, Tensor):
            dims = [dim for dim in range(labels.ndim) if varies(labels, dim)]
            if labels.ndim - 1 in dims and not self._tracer.several(labels, [-1]):
                dims = [labels.ndim - 1]  # others are places, such as that of a learned token
        else:
            return None
        return dims[0] if len(dims) == 1 else None

    def _known_value(self, used: Node, labels: Any, module: str) -> bool:
        """Say whether what a call takes is a number, or its module's own parameter: a vector of channels, or a number.

        Which are vectors, and as long as there are channels, is known already.
        """
        numbers = isinstance(value := used.meta.get("val"), Tensor) and value.numel() == 1
        if not isinstance(labels, Weight):
            return numbers and used.name in self._tracer.constants
        tensors = self._tracer.modules[module]
        own = {id(tensor) for tensor in (*tensors.parameters(), *tensors.buffers())}
        whole = labels.shape == labels.whole and id(self._tracer.tensors[labels.name]) in own
        return whole and (numbers or self._channels(labels) is not None)

    def _labels(
        self, call: _Call, given: Mapping[Node, Any], dims: Mapping[Node, int], roles: Mapping[int, str]
    ) -> Tensor:
        """Return the labels of what a norm puts out, having tied to them its parameters and the module itself."""
        assert call.out is not None
        tracer, name = self._tracer, self._first[call.module]
        active = [used for used in dims if isinstance(given[used], Tensor)]
        vectors = [tracer.labels.unite_along(given[used], dims[used]) for used in active]
        for other in vectors[1:]:
            tracer.labels.unite(vectors[0], other)
        for at, role in roles.items():
            weight = given[call.taken[at]]
            tracer.attach(weight, dims[call.taken[at]], vectors[0], role)
        place = _place(given[active[0]], dims[active[0]])
        self._dims[name] = place
        self._followed[name] += 1
        tracer.attach_live(name, place, vectors[0])
        out = call.out.meta["val"]
        return along(vectors[0], out.shape, place)


def _calls(tracer: Tracer) -> list[_Call]:
    """Return the calls of modules without modules of their own in which elements along a dimension meet."""
    found: list[list[Node]] = []
    before: Any = None
    for node in tracer.graph.nodes:
        stack = _stack(node) if node.op == "call_function" else ()
        leaf = bool(stack) and (module := tracer.modules.get(stack[-1][1])) is not None and not [*module.children()]
        if not leaf or stack != before:
            found.append([])
        if leaf:
            found[-1].append(node)
        before = stack
    return [_Call.of(nodes) for nodes in found if any(_meets(node) for node in nodes)]


def _stack(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple((key, value[0]) for key, value in node.meta.get("nn_module_stack", {}).items())


def _passes(node: Node) -> bool:
    """Say whether a node gives its input as it is: what else reads that may be handed it by this name."""
    return name_of(node) in SAME or node.meta.get("val") is None


def _meets(node: Node) -> bool:
    """Say whether elements along a dimension meet, and no rule says what becomes of a norm's channels."""
    name = name_of(node)
    return name in REDUCTIONS | ALONG or (name in NORMS and not any(isinstance(arg, Node) for arg in node.args[2:3]))


def _place(labels: Tensor, dim: int) -> int:
    """Return a dimension as a norm's mask has it: -1 if last."""
    return -1 if dim == labels.ndim - 1 else dim


def _key(call: _Call, dims: Mapping[Node, int]) -> str:
    """Return a description of a call by which equal ones are tried once."""
    at = {node: f"%{i}" for i, node in enumerate((*call.taken, *call.nodes))}
    taken = [(str(_shape(used)), dims.get(used), used.op) for used in call.taken]
    nodes = [(str(n.target), str(map_arg((n.args, n.kwargs), at.__getitem__))) for n in call.nodes]
    return str((taken, nodes, at.get(call.out) if call.out is not None else None))


def _shape(node: Node) -> Any:
    value = node.meta.get("val")
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


class _Trial:
    """Runs the nodes of a call on random values."""

    def __init__(
        self, call: _Call, given: Mapping[Node, Any], dims: Mapping[Node, int], place: int, tracer: Tracer
    ) -> None:
        self._call, self._dims, self._place = call, dims, place
        self._active = [used for used in dims if isinstance(given[used], Tensor)]
        self._weights = [used for used in dims if isinstance(given[used], Weight)]
        self._buffers = {used for used in self._weights if given[used].name not in tracer.parameters}
        generator = torch.Generator().manual_seed(0)
        self._values: dict[Node, Tensor] = {}
        for used in call.taken:
            value = used.meta["val"]
            drawn = torch.randn(value.shape, generator=generator)
            if used in self._active:
                self._values[used] = drawn.to(value.device, value.dtype)
            elif used.name in tracer.constants:
                self._values[used] = tracer.constants[used.name]
            elif used in dims:
                self._values[used] = (drawn.abs() + 0.5).to(value.device, value.dtype)
            else:
                self._values[used] = tracer.tensors[given[used].name].detach()

    @torch.no_grad()
    def roles(self) -> dict[int, str] | None:
        """Return the role of each parameter with channels, by its place in what is taken; None if this is no norm."""
        try:
            return self._roles()
        except Exception:  # what cannot run on other values is no norm
            return None

    def _roles(self) -> dict[int, str] | None:
        if any(not value.is_floating_point() for value in self._values.values()):
            return None
        if any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in self._call.nodes):  # type: ignore[union-attr]
            return None
        first = self._active[0]
        size = self._values[first].shape[self._dims[first]]
        base = self._run(self._values)
        other = self._with_another_channel()
        if not self._differ(base.narrow(self._place, 1, size - 1), self._run(other).narrow(self._place, 1, size - 1)):
            return None
        swapped, turned = torch.arange(size), torch.arange(size).roll(1)
        swapped[:2] = torch.tensor([1, 0])
        for order in (swapped, turned):  # any order is made of these two
            order = order.to(base.device)
            moved = {
                used: value.index_select(self._dims[used], order) if used in self._dims else value
                for used, value in self._values.items()
            }
            if self._differ(self._run(moved), base.index_select(self._place, order)):
                return None
        return {self._call.taken.index(used): self._role(used, other) for used in self._weights}

    def _role(self, weight: Node, other: Mapping[Node, Tensor]) -> str:
        """A parameter without which nothing of the input comes through is a norm's weight."""
        if weight in self._buffers:
            return "statistic"
        zero = {weight: torch.zeros_like(self._values[weight])}
        passes = self._differ(self._run({**self._values, **zero}), self._run({**other, **zero}))
        return "shift" if passes else "norm"

    def _with_another_channel(self) -> dict[Node, Tensor]:
        """Return the values with the first channel of what is normed three times as large."""
        others = {used: self._values[used].clone() for used in self._active}
        for used, value in others.items():
            value.select(self._dims[used], 0).mul_(3)
        return {**self._values, **others}

    def _run(self, values: Mapping[Node, Tensor]) -> Tensor:
        env: dict[Node, Any] = dict(values)
        for node in self._call.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        assert self._call.out is not None
        out: Tensor = env[self._call.out]
        return out

    @staticmethod
    def _differ(one: Tensor, other: Tensor) -> bool:
        limit = TOLERANCES.get(one.dtype, 0.05)
        return not torch.allclose(one.double(), other.double(), rtol=limit, atol=limit)
