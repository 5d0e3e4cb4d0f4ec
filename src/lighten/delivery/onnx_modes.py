"""Post-training modes that are made of a float ONNX graph: dynamic int8, and weights stored in 16 bits."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lighten.delivery.quiet import quiet

QUANTIZED = ("MatMul", "Gemm", "Conv")
"""Operators that onnxruntime quantizes dynamically."""


def dynamic_integers(proto: Any, left: Mapping[str, Tensor]) -> Any:
    """Return a graph with int8 weights, one scale an output channel, and inputs quantized in each call.

    Args:
        proto: a float ONNX model.
        left: weights, by layer, that stay in floating point.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = {tensor.name for tensor in proto.graph.initializer if _is_left(tensor, left)}
    excluded = [node.name for node in proto.graph.node if node.op_type in QUANTIZED and kept & set(node.input)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        logging.getLogger().setLevel(logging.ERROR)
        source, result = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(proto, source)
        quantize_dynamic(
            source,
            result,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )
        return onnx.load(result)


def store_halves(proto: Any, dtype: str, left: Mapping[str, Tensor]) -> None:
    """Store the weights of a float graph in 16 bits, and cast them to float32 in it.

    Args:
        proto: an ONNX model, changed in place; onnxruntime casts once, as it loads the file.
        dtype: ``"float16"`` or ``"bfloat16"``.
        left: weights, by layer, that stay in float32.
    """
    import ml_dtypes
    import onnx

    half = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or _is_left(tensor, left):
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(half), f"{name}.{dtype}"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.{dtype}"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        proto.graph.node.insert(0, cast)


def _is_left(tensor: Any, left: Mapping[str, Tensor]) -> bool:
    """Return whether an initializer is one of these weights: by its name, or, where it was transposed, its values."""
    import onnx

    if not left or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
        return False
    if any(tensor.name == f"model.{name}.weight" for name in left):
        return True
    values = onnx.numpy_helper.to_array(tensor)
    return any(np.array_equal(values, weight.t().cpu().numpy()) for weight in left.values() if weight.dim() == 2)
