"""Traced graphs of a model's forward, and changes to them."""

from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

LAYERS = {
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.linear.default,
}
"""What is computed with a weight, the second argument."""

CLAMPS = {
    torch.ops.aten.relu.default,
    torch.ops.aten.relu_.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.hardtanh_.default,
}
"""What integer runtimes fuse into the layer before it."""

QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
DEQUANTIZE_CHANNELS = "quantized_decomposed.dequantize_per_channel.default"
"""Names of operators that are registered no sooner than a quantized model is converted."""


def trace(model: nn.Module, args: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return the forward of ``model`` on the shapes of ``args`` as a graph, its constants computed and stored."""
    with torch.no_grad():
        traced = torch.export.export(model, args, strict=False).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    for node in traced.graph.nodes:
        _name_after_module(node)
    for node in _constants(traced.graph, sum(weight.numel() for weight in traced.state_dict().values())):
        store_(traced, node, value_of(traced, node))
    return tidied(traced)


def _constants(graph: fx.Graph, weights: int) -> list[fx.Node]:
    """Return what a forward makes of numbers alone, in order, for each is computed from those before it.

    A result is left to be computed where it is larger than what it is made of, and than a hundredth of the ``weights``.
    Weights are no numbers: what is computed of them stays. So do draws, and what is written into later.
    """
    written = _written(graph)
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op != "call_function" or drawn or node in written or not all(source in found for source in sources):
            continue
        made = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
        room = sum(value.numel() for value in made)
        if made and (not sources or room <= max(weights // 100, sum(found[source] for source in sources))):
            found[node] = room
    return [node for node in found if isinstance(node.meta["val"], Tensor)]


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that a later operator writes into, itself or through a view."""
    written: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.target is getitem and node in written:
            written.update(node.all_input_nodes)
        for argument, given in zip(_arguments(node), node.args, strict=False):
            alias = argument.alias_info
            if alias is not None and isinstance(given, fx.Node) and (alias.is_write or node in written):
                written.add(given)
    return written


def _arguments(node: fx.Node) -> list[Any]:
    return list(node.target._schema.arguments) if isinstance(node.target, torch._ops.OpOverload) else []


def store_(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Replace ``node`` by a buffer that holds ``value``, in place."""
    name = f"constant_{node.name}"
    graph.register_buffer(name, value.detach())
    with graph.graph.inserting_before(node):
        node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.erase_node(node)


def tidied(graph: fx.GraphModule) -> fx.GraphModule:
    """Remove what no output depends on, also parameters and buffers; returns ``graph``."""
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    stored = [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]
    for name, _ in stored:
        if name not in used:
            parent, _, last = name.rpartition(".")
            delattr(graph.get_submodule(parent), last)
    graph.recompile()
    return graph


def layers_in_float(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the layers whose output leaves without being quantized: integer runtimes compute these in float."""
    return [node for node in graph.graph.nodes if node.target in LAYERS and not _is_quantized(node)]


def value_of(graph: fx.GraphModule, node: Any) -> Any:
    """Compute ``node`` from stored tensors alone.

    Raises:
        ValueError: if it depends on an input.
    """
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        return attrgetter(str(node.target))(graph)
    if node.op != "call_function":
        raise ValueError(f"{node} depends on an input")
    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: value_of(graph, x))
    return target(*args, **kwargs)


def _name_after_module(node: fx.Node) -> None:
    """Let converters call what ``node`` makes by its module's name alone, not by all classes around it."""
    path = [name for name, _ in node.meta.get("nn_module_stack", {}).values()][-1:]
    node.meta["nn_module_stack"] = {"module": ("", path[0] if path else "")}


def _is_quantized(node: fx.Node) -> bool:
    while len(node.users) == 1 and next(iter(node.users)).target in CLAMPS:
        node = next(iter(node.users))
    return any(str(user.target) == QUANTIZE for user in node.users)
