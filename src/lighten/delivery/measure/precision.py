"""Integers where they are fast: a processor that computes them slowly gets int8 weights alone, in float32."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from lighten.delivery.export.prepare import in_float
from lighten.delivery.export.targets import export_onnx
from lighten.delivery.folders.model import CONFIG, load, save
from lighten.delivery.folders.run import FLOAT_FILE, read_json
from lighten.delivery.folders.student import FIT
from lighten.delivery.measure.int8_check import SLOWER
from lighten.delivery.measure.latency import Latency, batch_of, interleaved_latency
from lighten.delivery.runtimes.runners import open_runner
from lighten.quantization.weights_alone import quantizes_activations, weights_alone_
from lighten.utils.clone import clone
from lighten.utils.compression import record_of
from lighten.utils.inputs import ExampleInput, as_call, example_of
from lighten.utils.machine import processor

AUTO = "auto"
SECONDS = 1.0
"""How long each batch size is timed."""


def choose_precision(run: Path, *, batch_sizes: Sequence[int] = (1, 32)) -> str | None:
    """Let a run's student compute in float32 with its int8 weights where its int8 file is slower here.

    Where the recipe has ``delivery.precision: auto`` and no other target, whose runtimes have kernels of their own.
    Times ``student.onnx`` and ``student_float32.onnx``; where the former loses, ``student/`` and ``student.onnx`` are
    written again. Their size stays that of int8.

    Args:
        run: the run folder, exported.
        batch_sizes: that count, alike.

    Returns:
        What was changed and why, in a sentence; ``None`` where integers stay.
    """
    folder, int8, floating = run / "student", run / "student.onnx", run / FLOAT_FILE
    fit = read_json(run / FIT, made_by="lighten train recipe=…")
    if fit.get("precision") != AUTO or fit["targets"] != ["onnx"] or not floating.exists():
        return None
    model = load(folder)
    if not quantizes_activations(record_of(model).quantization):
        return None
    config = read_json(folder / CONFIG, made_by=f"lighten shrink {run}")
    example = example_of(config["model"]["input_shape"])
    why = slow_integers(int8, floating, example, batch_sizes=batch_sizes)
    if why is None:
        return None
    weights_alone_(model, why)
    export_onnx(model, example, int8, opset=fit["opset"])
    save(model, folder, **{key: value for key, value in config.items() if key not in ("schema", "model")})
    return f"{why}: weights stay in int8, and the file computes in float32"


def faster_form(model: nn.Module, example: ExampleInput, int8: Path, *, batch: int, threads: int) -> nn.Module:
    """Return ``model``, or a copy that computes in float32 with its int8 weights where its int8 file is slower here.

    Args:
        model: quantized.
        example: an input.
        int8: its ONNX file.
        batch: samples a call.
        threads: of a call.
    """
    if not quantizes_activations(record_of(model).quantization):
        return model
    with tempfile.TemporaryDirectory() as place:
        floating = export_onnx(in_float(model), example, Path(place) / FLOAT_FILE)
        why = slow_integers(int8, floating, example, batch_sizes=[batch], threads=threads)
    return model if why is None else weights_alone_(clone(model), why)


def slow_integers(
    int8: Path, floating: Path, example: ExampleInput, *, batch_sizes: Sequence[int], threads: int = 1
) -> str | None:
    """Return how much slower an int8 file is than the same network in float32, on the whole; ``None`` if it is not."""
    batches = {f"batch {size}": batch_of(as_call(example), size) for size in batch_sizes}
    with ExitStack() as stack:
        files = {"int8": int8, "float": floating}
        runners = {name: stack.enter_context(open_runner(path, threads=threads)) for name, path in files.items()}
        return verdict(interleaved_latency(runners, batches, seconds=SECONDS))


def verdict(latency: Mapping[str, Mapping[str, Latency]]) -> str | None:
    """Return how much slower ``int8`` is than ``float``, by batch; ``None`` where it is not slower on the whole.

    Example:
        >>> slow, fast = {"batch 1": {"median": 2.0, "p90": 2.0}}, {"batch 1": {"median": 1.0, "p90": 1.0}}
        >>> verdict({"int8": slow, "float": fast}).partition(" on ")[0]
        "int8 runs at 0.50 of float32's speed at batch 1"
        >>> verdict({"int8": fast, "float": slow}) is None
        True
    """
    ratios = {name: latency["float"][name]["median"] / found["median"] for name, found in latency["int8"].items()}
    if math.prod(ratios.values()) ** (1 / len(ratios)) >= SLOWER:
        return None
    speeds = " and ".join(f"{ratio:.2f}" for ratio in ratios.values())
    return f"int8 runs at {speeds} of float32's speed at {' and '.join(ratios)} on {processor()}"
