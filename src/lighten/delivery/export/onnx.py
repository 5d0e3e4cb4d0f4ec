"""The writer of ONNX files: traced with the dimensions that a model leaves open, and proved by running."""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lighten.delivery.export.dimensions import (
    TRACED,
    Open,
    as_dynamic_shapes,
    batch_size,
    candidates,
    other_lengths,
    with_samples,
)
from lighten.delivery.export.onnx_modes import store_halves
from lighten.delivery.export.onnx_stem import widen_stems
from lighten.delivery.export.prepare import Source, source_of
from lighten.delivery.export.proof import prove
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.packages import is_installed
from lighten.delivery.runtimes.quiet import quiet
from lighten.delivery.runtimes.signature import Graph
from lighten.errors import UserError, one_line
from lighten.quantization.activation_quantizers import ActivationQuantizers
from lighten.quantization.fake_quant import forbidden
from lighten.quantization.integer_layers import QdqFormat

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
        file = Path(folder) / "model.onnx"
        content = proved_onnx(source, file, request.path, request.opset, request.batch, wide=True)
    request.store(content)


def proved_onnx(source: Source, file: Path, name: Path, opset: int | None, batch: int | None, *, wide: bool) -> bytes:
    """Return an ONNX file that computes what ``source`` does, with as many dimensions open as it allows.

    Args:
        source: what is exported.
        file: where to put it, to be run.
        name: what messages call it.
        opset: its operator set, or ``None`` for the oldest that serves.
        batch: samples a call; ``None`` for any number.
        wide: give stems the channels that integer kernels of onnxruntime read.

    Raises:
        UserError: if no graph can be made of it, or its batch cannot be open.
    """
    inputs = with_samples(source.inputs, TRACED if batch is None else batch)
    graph = source.converted(QdqFormat())
    closed: Open = [{} for _ in inputs]
    if opset is None:
        opset = ATTENTION if _attends(source.network, source.inputs) else OPSET
    errors: list[Exception] = []
    for dimensions in candidates(source.network, inputs) if batch is None else [closed]:
        try:
            return _proved(source, graph, inputs, dimensions, file, name, opset, wide)
        except Exception as error:  # exporters' exceptions share no base class
            errors.append(error)
    size = batch_size(source.inputs)
    if batch is None and _is_written(source, graph, source.inputs, closed, file, name, opset, wide):
        raise UserError(
            f"{name}: {type(source.model).__name__} does not take any batch size "
            f"({one_line(errors[-1], 150)}); give batch={size} for a file that takes just that, or another number"
        )
    raise errors[-1]


def _is_written(*settings: Any) -> bool:
    try:
        return bool(_proved(*settings))
    except Exception:  # as above
        return False


def _proved(
    source: Source, graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open, file: Path, name: Path, opset: int,
    wide: bool,
) -> bytes:  # fmt: skip
    proto = _proto(graph, inputs, dimensions, opset)
    store_halves(proto, source.halves)
    if wide:
        widen_stems(proto)
    content = _bytes(proto)
    file.write_bytes(content)
    tries = [inputs]
    if any(dimensions):
        tries += [with_samples(inputs, size) for size in (1, 3)] + other_lengths(inputs, dimensions)
    if is_installed("onnxruntime"):
        prove(file, source.network, tries, quantized=source.quantized, name=name)
    return content


def _proto(graph: Graph, inputs: tuple[Tensor, ...], dimensions: Open, opset: int) -> Any:
    with quiet(), forbidden(), torch.no_grad():
        traced = torch.export.export(graph, inputs, dynamic_shapes=(as_dynamic_shapes(dimensions),), strict=False)
        _check_places(graph)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=opset,
            input_names=graph.inputs,
            output_names=[f"{name}_out" if name in graph.inputs else name for name in graph.outputs],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_dimensions(proto.graph, dimensions)
    return proto


def _check_places(graph: Graph) -> None:
    """Raise ``UserError`` where the graph lacks operators for an activation that the network quantizes."""
    lost = [name for m in graph.modules() if isinstance(m, ActivationQuantizers) for name in m.unwritten()]
    if lost:
        raise UserError(
            f"the traced forward does not quantize {', '.join(lost)}, as the network does: it takes another way "
            "through the code; give an example_input like those it was trained on"
        )


def _name_dimensions(graph: Any, dimensions: Open) -> None:
    """Call open dimensions batch and length, also in what outputs' sizes are computed of."""
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
