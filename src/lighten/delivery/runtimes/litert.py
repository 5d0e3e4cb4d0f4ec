"""The runner of LiteRT (formerly TensorFlow Lite) files, and their count."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lighten.delivery.runtimes.feeds import by_position, piece_by_piece, readable, runnable
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.runners import Runner, Size
from lighten.utils.inputs import Call

SHAPES = {"RESHAPE", "TRANSPOSE", "PAD", "PADV2", "MEAN", "SUM", "REDUCE_MAX", "STRIDED_SLICE", "SLICE", "SPLIT"}
"""Operators whose further inputs are sizes and axes."""


class LiteRtRunner(Runner):
    """A LiteRT file on the CPU with its XNNPACK delegate, ``threads`` wide.

    The file has a fixed batch, one as ``export`` writes it: a larger batch is run piece by piece, which is what its
    user does, and so is the latency that is measured. Where inputs or logits are int8 codes, turning numbers into
    codes and back is part of the run.
    """

    runtime = "litert"

    def __init__(self, path: Path, threads: int = 1) -> None:
        (litert,) = need("litert", "ai_edge_litert.interpreter")
        self.name, self.threads = str(path), threads
        with readable(path, "LiteRT"), silent():
            self.interpreter = litert.Interpreter(str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def feed(self, call: Call) -> list[np.ndarray]:
        """Return the call as arrays by position; keywords in their order."""
        arrays = by_position(self.name, [entry["shape"] for entry in self.inputs], call)
        return [
            x if np.issubdtype(entry["dtype"], np.integer) and x.dtype.kind == "f" else x.astype(entry["dtype"])
            for x, entry in zip(arrays, self.inputs, strict=True)
        ]

    def run_all(self, feed: list[np.ndarray]) -> list[np.ndarray]:
        """Run the file, once a sample.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with runnable(self.name):
            return piece_by_piece(feed, int(self.inputs[0]["shape"][0]), self._run)

    def count(self, sample: Call) -> Size:
        """Read parameters and multiply-accumulates off the file's operators."""
        path = Path(self.name)
        parameters, macs = count_litert(path)
        return {"parameters": parameters, "macs": macs, "bytes": path.stat().st_size}

    def _run(self, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
        for x, entry in zip(feed, self.inputs, strict=True):
            self.interpreter.set_tensor(entry["index"], x if x.dtype == entry["dtype"] else _codes_of(x, entry))
        self.interpreter.invoke()
        return [_numbers_of(self.interpreter.get_tensor(entry["index"]), entry) for entry in self.outputs]


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
    constants = {i for operator in operators for i in _given(operator) if i in tensors and i not in made}
    macs = sum(_macs(operator, tensors, sizes) for operator in operators)
    return sum(sizes[i] for i in constants if sizes[i] > 1 or len(tensors[i]["shape"])), macs


def _numbers_of(output: np.ndarray, entry: Any) -> np.ndarray:
    """Return an output of a LiteRT file in floating point."""
    if output.dtype.kind == "f" or not entry["quantization"][0]:
        return output.astype(np.float32)
    scale, zero_point = entry["quantization"]
    return (output.astype(np.float32) - zero_point) * np.float32(scale)


def _codes_of(x: np.ndarray, entry: Any) -> np.ndarray:
    """Return the codes of ``x`` for an integer input of a LiteRT file."""
    scale, zero_point = entry["quantization"]
    limits = np.iinfo(entry["dtype"])
    codes = np.rint(x * (np.float32(1) / np.float32(scale))) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(entry["dtype"])


def _given(operator: Mapping[str, Any]) -> Iterator[int]:
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
