"""Parameters and multiply-accumulates of a LiteRT file, read off its operators."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent

SHAPES = {"RESHAPE", "TRANSPOSE", "PAD", "PADV2", "MEAN", "SUM", "REDUCE_MAX", "STRIDED_SLICE", "SLICE", "SPLIT"}
"""Operators whose further inputs are sizes and axes."""


def count_litert(path: Path) -> tuple[int, int]:
    """Return parameters and MACs of one call; the file must be readable.

    Parameters are the constants that operators compute with, once each, scales and single numbers aside.
    """
    (litert,) = need("litert", "ai_edge_litert.interpreter")
    with silent():
        plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = litert.Interpreter(str(path), experimental_op_resolver_type=plain)
        interpreter.allocate_tensors()
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()  # there is no public way to them
    sizes = {index: math.prod(int(n) for n in tensor["shape"]) for index, tensor in tensors.items()}
    made = {i for operator in operators for i in operator["outputs"]}
    made |= {entry["index"] for entry in interpreter.get_input_details()}
    constants = {i for operator in operators for i in _numbers(operator) if i in tensors and i not in made}
    macs = sum(_macs(operator, tensors, sizes) for operator in operators)
    return sum(sizes[i] for i in constants if sizes[i] > 1 or len(tensors[i]["shape"])), macs


def _numbers(operator: Mapping[str, Any]) -> Iterator[int]:
    """Yield the inputs of an operator that may be numbers it computes with."""
    yield from (int(i) for i in (operator["inputs"][:1] if operator["op_name"] in SHAPES else operator["inputs"]))


def _macs(operator: Mapping[str, Any], tensors: Mapping[int, Any], sizes: Mapping[int, int]) -> int:
    name, output = operator["op_name"], int(operator["outputs"][0])
    shapes = [[int(n) for n in tensors[int(i)]["shape"]] if int(i) in tensors else [] for i in operator["inputs"]]
    if name == "CONV_2D":
        return sizes[output] * math.prod(shapes[1][1:])
    if name == "DEPTHWISE_CONV_2D":
        return sizes[output] * math.prod(shapes[1][1:3])
    if name == "TRANSPOSE_CONV":
        return math.prod(shapes[2]) * math.prod(shapes[1][:3])
    if name in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        return sizes[output] * shapes[0][-1]
    return 0
