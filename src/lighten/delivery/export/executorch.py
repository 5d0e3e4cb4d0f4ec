"""The writer of ExecuTorch files, ``.pte``, whose graph XNNPACK computes."""

import torch
from torch import Tensor, fx, nn

from lighten.delivery.export.graph import DEQUANTIZE, QUANTIZE, layers_in_float, store_, tidied, trace, value_of
from lighten.delivery.export.one_sample import write_one_sample
from lighten.delivery.export.request import Request
from lighten.delivery.export.work import work_of
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.quantization.integer_layers import QdqFormat

FORMAT = QdqFormat(signed=True, weight_codes=True, bias_codes=False)
"""What XNNPACK's partitioner recognises; it makes codes of the biases itself, exactly, as they lie on the grid."""

JOINS = {getattr(torch.ops.aten, name).default for name in ("cat", "concat", "concatenate")}
"""Concatenations, by all their names."""


def write(request: Request) -> None:
    """Write an ExecuTorch file."""
    write_one_sample(request, FORMAT, lambda model, args, mode: executorch_bytes(model, args))


def executorch_bytes(model: nn.Module, args: tuple[Tensor, ...]) -> bytes:
    """Return the ``.pte`` file of ``model``, for the shapes of ``args`` alone.

    Methods of the file by the names ``parameters`` and ``macs`` return these counts.

    Args:
        model: in ``FORMAT`` if it is quantized.
        args: example inputs.

    Raises:
        UserError: if ExecuTorch is not installed.
    """
    exir, xnnpack = need("executorch", "executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner")
    with silent(), torch.no_grad():
        graph = _as_xnnpack_takes_it(trace(model, args))
        program = torch.export.export(graph, args, strict=False)
        edge = exir.to_edge_transform_and_lower(
            program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=work_of(model, args)
        )
        return edge.to_executorch().buffer


def _as_xnnpack_takes_it(graph: fx.GraphModule) -> fx.GraphModule:
    """Return ``graph`` with what would not be computed by XNNPACK, or not correctly, written in another way.

    A layer without quantized output gets its weight as floats (its codes would be taken for values), a mean over
    pixels keeps its dimensions until it is quantized, what is concatenated has the scale of the result already, and
    who reads a quantized tensor dequantizes it for himself. All of it computes the same, bit by bit.
    """
    for layer in layers_in_float(graph):
        weight = layer.args[1]
        if isinstance(weight, fx.Node) and weight.op == "call_function" and len(weight.users) == 1:
            store_(graph, weight, value_of(graph, weight))
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.mean.dim and not (len(node.args) > 2 and node.args[2]) and not node.kwargs:
            _keep_dimensions(graph, node)
        elif node.target in JOINS:
            _share_scale(graph, node)
        elif str(node.target) == DEQUANTIZE:
            for user in list(node.users)[1:]:
                with graph.graph.inserting_after(node):
                    user.replace_input_with(node, graph.graph.call_function(node.target, node.args, node.kwargs))
    return tidied(graph)


def _keep_dimensions(graph: fx.GraphModule, mean: fx.Node) -> None:
    """Let ``mean`` keep its dimensions, and reshape what it makes once that is quantized."""
    shape = list(mean.meta["val"].shape)
    mean.args = (*mean.args[:2], True)
    end = mean
    while len(end.users) == 1 and str(next(iter(end.users)).target) in (QUANTIZE, DEQUANTIZE):
        end = next(iter(end.users))
    with graph.graph.inserting_after(end):
        view = graph.graph.call_function(torch.ops.aten.view.default, (end, shape))
    end.replace_all_uses_with(view, delete_user_cb=lambda user: user is not view)


def _share_scale(graph: fx.GraphModule, concatenation: fx.Node) -> None:
    """Quantize what is concatenated as the result is, where that is quantized."""
    quantize = next((user for user in concatenation.users if str(user.target) == QUANTIZE), None)
    if quantize is None:
        return
    ops = torch.ops.quantized_decomposed
    for given in list(concatenation.all_input_nodes):
        with graph.graph.inserting_before(concatenation):
            codes = graph.graph.call_function(ops.quantize_per_tensor.default, (given, *quantize.args[1:]))
            value = graph.graph.call_function(ops.dequantize_per_tensor.default, (codes, *quantize.args[1:]))
        concatenation.replace_input_with(given, value)
