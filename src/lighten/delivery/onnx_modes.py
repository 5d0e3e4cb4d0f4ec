"""Post-training modes that are made of a float ONNX graph: dynamic int8, and weights stored in 16 bits."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lighten.delivery.quiet import quiet

QUANTIZED = ("MatMul", "Gemm", "Conv")
"""Operators that onnxruntime quantizes dynamically."""


def dynamic_integers(proto: Any, left: Sequence[Tensor]) -> Any:
    """Return a graph with int8 weights, one scale an output channel, and inputs quantized in each call.

    Args:
        proto: a float ONNX model.
        left: weights of layers that stay in floating point.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = [weight.cpu().numpy() for weight in left]
    excluded = [
        node.name
        for node in proto.graph.node
        if node.op_type in QUANTIZED and any(_is_one_of(floats[name], weights) for name in node.input if name in floats)
    ]
    with tempfile.TemporaryDirectory() as folder, quiet():
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


def store_halves(proto: Any, dtype: str) -> None:
    """Store the weights of a float graph in 16 bits, where they lose nothing by it, and cast them to float32 in it.

    Args:
        proto: an ONNX model, changed in place; onnxruntime casts once, as it loads the file.
        dtype: ``"float16"`` or ``"bfloat16"``.
    """
    import ml_dtypes
    import onnx

    half = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        stored = values.astype(half)
        if not np.array_equal(stored.astype(np.float32), values):
            continue  # left out of quantization
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(stored, f"{name}.{dtype}"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.{dtype}"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        proto.graph.node.insert(0, cast)


def _is_one_of(array: np.ndarray, weights: Sequence[np.ndarray]) -> bool:
    return any(
        np.array_equal(array, other)
        for weight in weights
        for other in ((weight, weight.T) if weight.ndim == 2 else (weight,))
    )
