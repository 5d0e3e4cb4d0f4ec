"""Parameters, multiply-accumulates and bytes of an ONNX file, counted on its graph."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lighten.delivery.runtimes.onnx_session import open_session
from lighten.delivery.runtimes.runners import Size
from lighten.errors import UserError

Shape = tuple[int, ...]

NO_NODE = SimpleNamespace(op_type="")
"""What makes a graph's inputs and constants."""


def count_onnx(path: Path, feed: dict[str, Any]) -> Size:
    """Count an ONNX file, its external data included.

    Parameters are the constants that the graph computes with, once each; scales, zero points, running
    statistics and shapes are none, nor are the zeros that a first layer was widened by. MACs follow from the
    shapes that one run of ``feed`` produces, so dynamic shapes need no inference.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        external = {path.parent / name for name in _external_files(model)}
        model = onnx.load(path) if external else model
    except Exception as error:  # protobuf's DecodeError is not importable from a stable place
        raise UserError(f"{path}: not a readable ONNX file ({error}); export it again") from None
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = _constants(model)
    shapes = _shapes(model, path, feed) | {name: tuple(t.dims) for name, t in constants.items()}
    for name, zeros in padded_weights(model.graph).items():
        shapes[name] = (shapes[name][0], shapes[name][1] - zeros, *shapes[name][2:])
    return {
        "parameters": sum(math.prod(shapes[name]) for name in _weights(model, constants)),
        "macs": sum(MACS[node.op_type](node, shapes) for node in _counted(model)),
        "bytes": sum(file.stat().st_size for file in {path, *external}),
    }


def padded_weights(graph: Any) -> dict[str, int]:
    """Return how many input channels of which weights only widen a stem, by their stored and dequantized names."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    found = {}
    for node in [n for n in graph.node if n.op_type == "Conv"]:
        image, weight = (made_by.get(name, NO_NODE) for name in node.input[:2])
        pad = made_by.get(image.input[0], NO_NODE) if dequantizes(image) else NO_NODE
        if dequantizes(weight) and pad.op_type == "Pad" and pad.input[1] in constants:
            pads = numpy_helper.to_array(constants[pad.input[1]])
            found[node.input[1]] = found[weight.input[0]] = int(pads[len(pads) // 2 + 1])
    return found


def dequantizes(node: Any) -> bool:
    """Return whether a node turns codes into numbers."""
    return str(node.op_type) == "DequantizeLinear"


def _conv_macs(weight: int) -> Callable[[Any, dict[str, Shape]], int]:
    def macs(node: Any, shapes: dict[str, Shape]) -> int:
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weight]][1:])

    return macs


def _transposed_macs(node: Any, shapes: dict[str, Shape]) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _matmul_macs(node: Any, shapes: dict[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm_macs(node: Any, shapes: dict[str, Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _attention_macs(node: Any, shapes: dict[str, Shape]) -> int:
    """Count queries by keys, then those by values; heads stand beside each other or have a dimension of their own."""
    query, keys, output = shapes[node.input[0]], shapes[node.input[1]][-2], shapes[node.output[0]]
    return (math.prod(query) + math.prod(output)) * keys


MACS: dict[str, Callable[[Any, dict[str, Shape]], int]] = {
    "Attention": _attention_macs,
    "Conv": _conv_macs(1),
    "ConvInteger": _conv_macs(1),
    "QLinearConv": _conv_macs(3),
    "ConvTranspose": _transposed_macs,
    "Gemm": _gemm_macs,
    "MatMul": _matmul_macs,
    "MatMulInteger": _matmul_macs,
    "QLinearMatMul": _matmul_macs,
}
"""MACs of one node from the shapes of its tensors, by operator."""

NOT_WEIGHTS = {
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7},
    "ConvInteger": {2, 3},
    "MatMulInteger": {2, 3},
    "BatchNormalization": {3, 4},
    "Resize": {1, 2, 3},
}
"""Input slots that hold scales, zero points, running statistics or sizes."""

ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"}


def _counted(model: Any) -> list[Any]:
    return [node for node in model.graph.node if node.op_type in MACS]


def _constants(model: Any) -> dict[str, Any]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def _weights(model: Any, constants: dict[str, Any]) -> set[str]:
    casts = {n.output[0] for n in model.graph.node if n.op_type == "Cast" and n.input[0] in constants}
    return {
        name
        for node in model.graph.node
        for slot, name in enumerate(node.input)
        if name in constants
        and _is_weight(node.op_type, slot, constants[name])
        and not (node.op_type == "Mul" and casts.intersection(node.input))  # the scale of stored codes
    }


def _is_weight(op: str, slot: int, tensor: Any) -> bool:
    from onnx import TensorProto

    if slot in NOT_WEIGHTS.get(op, ()) or not tensor.dims:
        return False
    if op in ELEMENTWISE and math.prod(tensor.dims) == 1:
        return False
    if tensor.data_type in {TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING}:
        return False
    return tensor.data_type != TensorProto.INT32 or (op, slot) in {
        ("DequantizeLinear", 0),
        ("QLinearConv", 8),
    }


def _shapes(model: Any, path: Path, feed: dict[str, Any]) -> dict[str, Shape]:
    """Run the unoptimised graph once and return the shapes of all tensors that the counted nodes touch."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {t.name for t in model.graph.initializer} | {i.name for i in model.graph.input}
    wanted = {name for node in _counted(model) for name in (*node.input, *node.output) if name} - known
    present = {output.name for output in model.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - present))
    session = open_session(probe.SerializeToString(), path, threads=1, optimise=False)
    names = sorted(wanted)
    values = session.run(names, feed) if names else []
    return {name: value.shape for name, value in [*feed.items(), *zip(names, values, strict=True)]}


def _external_files(model: Any) -> Iterator[str]:
    for tensor in model.graph.initializer:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
