"""The writer of ONNX files: traced with the dimensions that a model leaves open, and proved by running."""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lighten.delivery.export.dimensions import Open
from lighten.delivery.export.onnx_modes import store_halves, unpack_weights
from lighten.delivery.export.onnx_stem import widen_stems
from lighten.delivery.export.prepare import Source, source_of
from lighten.delivery.export.proved import proved_bytes, traced_program
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.quiet import quiet
from lighten.delivery.runtimes.signature import Graph
from lighten.quantization.fake_quant import forbidden
from lighten.quantization.weights_alone import is_weights_alone
from lighten.utils.onnx_program import onnx_program

OPSET, ATTENTION = 18, 23
"""Operator sets: the one that onnxruntime 1.14 and later read, and the first in which attention is one operator.

The latter takes a quarter off the time of an encoder's int8 file; onnxruntime reads it from 1.24 on.
"""

OPSETS = range(18, 24)
"""Operator sets that can be asked for; below 18 per-channel zero points and reductions take other forms."""


def write(request: Request) -> None:
    """Write an ONNX file."""
    source = source_of(request.model, request.example, request.outputs)
    with tempfile.TemporaryDirectory() as folder:
        content = proved_onnx(source, Path(folder) / "model.onnx", request, request.opset, wide=True)
    request.store(content)


def proved_onnx(source: Source, file: Path, request: Request, opset: int | None, *, wide: bool) -> bytes:
    """Return an ONNX file that computes what ``source`` does, with as many dimensions open as it allows.

    Args:
        source: what is exported.
        file: where to put it, to be run.
        request: what was asked.
        opset: its operator set, or ``None`` for the oldest that serves.
        wide: give stems the channels that integer kernels of onnxruntime read.

    Raises:
        UserError: if no graph can be made of it, or it fixes what is asked to be open.
    """
    if opset is None:
        opset = ATTENTION if _attends(source.network, source.inputs) else OPSET

    def convert(graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open) -> bytes:
        proto = _proto(graph, inputs, dimensions, opset)
        store_halves(proto, source.halves)
        if is_weights_alone(source.network):
            unpack_weights(proto)
        if wide:
            widen_stems(proto)
        return _bytes(proto)

    return proved_bytes(source, request, file, convert)


def _proto(graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open, opset: int) -> Any:
    with quiet(), forbidden(), torch.no_grad():
        program = onnx_program(
            traced_program(graph, inputs, dimensions),
            opset_version=opset,
            input_names=graph.inputs,
            output_names=[f"{name}_out" if name in graph.inputs else name for name in graph.outputs],
        )
    proto = program.model_proto
    _name_dimensions(proto.graph, dimensions)
    return proto


def _name_dimensions(graph: Any, dimensions: Open) -> None:
    """Call open dimensions by their names, also in what outputs' sizes are computed of."""
    known: dict[str, str] = {}
    for value, names in zip(graph.input, dimensions, strict=True):
        for index, name in names.items():
            known[value.type.tensor_type.shape.dim[index].dim_param] = name
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda found: known.get(found[0], found[0]), dimension.dim_param)


def _bytes(proto: Any) -> bytes:
    import onnx

    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
    ):
        del part.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("doc_string")
    del proto.graph.value_info[:]
    proto.graph.name = "lighten"
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


class _Attention(TorchFunctionMode):
    """While active, notices whether attention is computed."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _attends(graph: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    with torch.no_grad(), _Attention() as attention:
        graph(*inputs)
    return attention.seen
