"""The check of int8 files: smaller and faster than the same network in float32, in the same runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.measure.latency import Latency
from lighten.utils.machine import processor_flags

SLOWER = 0.97
"""Ratios of speed below this are slower; those nearer to one are noise."""

NARROW = 16
"""Int8 kernels compute at least so many channels at a time."""

TINY_MS = 0.1
"""Networks that answer faster than this spend their time elsewhere than in arithmetic."""


def int8_vs_float(
    int8: Path,
    floating: Path,
    latency: Mapping[str, dict[str, Latency]],
    *,
    runtime: str,
    flags: frozenset[str] | None = None,
) -> dict[str, Any]:
    """Compare a quantized file with the same network in float32.

    Args:
        int8: the quantized ONNX file.
        floating: the same network in float32.
        latency: of ``"int8"`` and ``"float"``, by batch, measured in turn.
        runtime: where both ran.
        flags: what the processor can do; read from the system by default.

    Returns:
        Bytes, latencies and ratios (above one: smaller, faster), and ``warnings``, each with its likely cause.
    """
    sizes = {"float": floating.stat().st_size, "int8": int8.stat().st_size}
    speedups = {
        batch: latency["float"][batch]["median"] / latency["int8"][batch]["median"] for batch in latency["int8"]
    }
    warnings = []
    if sizes["int8"] >= sizes["float"]:
        warnings.append(
            f"the quantized file is larger than in float32 ({sizes['int8']:,} against {sizes['float']:,} bytes): "
            "its weights are too few to pay for the operators that quantize; keep float32"
        )
    for batch, ratio in speedups.items():
        if ratio < SLOWER:
            times = (latency["int8"][batch]["median"], latency["float"][batch]["median"])
            cause = likely_cause(int8, times[1], processor_flags() if flags is None else flags)
            warnings.append(
                f"the quantized file runs at {ratio:.2f} of float32's speed in {runtime} at {batch.replace('_', ' ')} "
                f"({times[0]:.3g} against {times[1]:.3g} ms): {cause}"
            )
    return {
        "runtime": runtime,
        "float_bytes": sizes["float"],
        "int8_bytes": sizes["int8"],
        "float_latency_ms": latency["float"],
        "int8_latency_ms": latency["int8"],
        "size_ratio": sizes["float"] / sizes["int8"],
        **{f"speedup_{batch}": ratio for batch, ratio in speedups.items()},
        "warnings": warnings,
    }


def likely_cause(path: Path, float_ms: float, flags: frozenset[str]) -> str:
    """Return why a quantized file is slow, and what to do: read off its operators and the processor."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    widths = sorted(t.dims[0] for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1)
    if "ConvInteger" in kinds:
        return "onnxruntime computes dynamically quantized convolutions slowly; use mode static, or train with Quantize"
    if not {"QuantizeLinear", "DynamicQuantizeLinear"} & set(kinds):
        return "weights are stored in 16 bits and computed with in 32, which saves space, not time"
    if float_ms < TINY_MS:
        return "the network is so small that quantizing costs more than it saves; keep float32"
    if flags and not {"avx512_vnni", "avx_vnni", "asimddp"} & flags:
        return "the processor has no instructions for int8 products (VNNI); measure on the one that will run it"
    if widths and widths[len(widths) // 2] < NARROW:
        return (
            f"half of its layers have {widths[len(widths) // 2]} channels or fewer, too few to fill int8 kernels; "
            "keep float32, or choose a wider network"
        )
    layers = sum(kinds.count(kind) for kind in ("Conv", "Gemm", "MatMul", "MatMulInteger", "ConvTranspose"))
    return (
        f"{kinds.count('QuantizeLinear')} quantize operators stand beside {layers} products; leave out by exclude what "
        "lies between floating-point operations"
    )
