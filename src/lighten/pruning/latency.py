"""Latency of pruned widths, measured in ONNX Runtime."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, allocate, pressure
from lighten.pruning.check import synthesise
from lighten.pruning.cost import costs_of
from lighten.pruning.cut import cut_
from lighten.pruning.damage import GroupSensitivity
from lighten.pruning.groups import Structure
from lighten.pruning.mask import mask_
from lighten.pruning.settings import Settings
from lighten.pruning.trace import Geometry
from lighten.utils.clone import clone
from lighten.utils.onnx_program import onnx_program

MAX_TRIALS = 6
"""Pressures that are tried at most, before groups are cut one by one."""
ROUNDS = 15
CLOSE = 0.01
"""A latency is reached when it is this near, as a share of the whole model's."""


def reach_latency(
    model: nn.Module,
    structure: Structure,
    candidates: Sequence[Candidate],
    settings: Settings,
    sensitivities: Sequence[GroupSensitivity],
) -> tuple[list[int], float]:
    """Return how many channels of each group go so that the given share of latency does, and the share measured.

    The model is cut at one width after another, exported to ONNX in float32 and run side by side with the whole one
    in ONNX Runtime on one thread, on a batch as large as the example's.

    Raises:
        UserError: if even the narrowest network is not that fast.
    """
    at = pressure(candidates, settings.scope, align=settings.align, sensitivities=sensitivities)
    with tempfile.TemporaryDirectory() as folder:
        timer = _Timer(model, structure, candidates, Path(folder))
        most = timer.saved(at(0.97))
        if most < settings.amount - CLOSE:
            raise UserError(
                f"amount={settings.amount} of the latency cannot be reached: {most:.2f} at the narrowest; ask for less"
            )
        counts = _nearest_widths(timer, settings.amount, at)
    return list(counts), timer.saved(counts)


def _nearest_widths(timer: "_Timer", amount: float, at: Callable[[float], list[int]]) -> Sequence[int]:
    """Return the widths that come nearest: all groups under one pressure, then the first few of them under the next."""
    low, high = 0.0, 1.0
    for _ in range(MAX_TRIALS):
        guess = (low + high) / 2
        saved = timer.saved(at(guess))
        if abs(saved - amount) <= CLOSE:
            break
        low, high = (guess, high) if saved < amount else (low, guess)
    slow, fast = at(low), at(high)
    first, last = 0, len(slow)
    while last - first > 1:
        middle = (first + last) // 2
        enough = timer.saved([*fast[:middle], *slow[middle:]]) >= amount
        first, last = (first, middle) if enough else (middle, last)
    return min(timer.known, key=lambda counts: abs(timer.known[counts] - amount))


def predict(structure: Structure, counts: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of each layer before and after ``counts`` channels of each group go.

    Each convolution and linear layer is timed alone, at both widths, as one node in ONNX Runtime on one thread, in
    float32; equal ones once.
    Transposed convolutions and products of activations are left out. What a layer costs within a network differs
    somewhat: it may be fused with what follows, or find its input in the cache.
    """
    left = costs_of(structure).macs.left(counts)
    times: dict[Geometry, float] = {}
    found: dict[str, tuple[float, float]] = {}
    for which, cost in enumerate(structure.costs):
        if cost.geometry is not None and len(cost.geometry.inputs) > 1:
            small = _narrowed(cost.geometry, left[0, which], left[1, which])
            for geometry in (cost.geometry, small):
                if geometry not in times:
                    times[geometry] = 1000 * interleaved([_node(geometry)], rounds=3, least=0.001)[0]
            before, after = found.get(cost.layer, (0.0, 0.0))
            found[cost.layer] = before + times[cost.geometry], after + times[small]
    return found


def _narrowed(geometry: Geometry, outputs: float, inputs: float) -> Geometry:
    channel = 1
    depthwise = geometry.groups > 1 and geometry.groups == geometry.inputs[channel]
    wide = round(geometry.outputs[channel] * outputs)
    taken = round(geometry.inputs[channel] * (outputs if depthwise else inputs))
    groups = taken if depthwise else geometry.groups
    a, b = list(geometry.inputs), list(geometry.outputs)
    a[channel], b[channel] = max(1, taken), max(1, wide)
    return replace(geometry, inputs=tuple(a), outputs=tuple(b), groups=max(1, groups))


def _node(geometry: Geometry) -> Callable[[], object]:
    """Return a call of one layer in ONNX Runtime, with strides and padding that lead from its inputs to its outputs."""
    from onnx import TensorProto, helper, numpy_helper

    taken = geometry.inputs[1] // geometry.groups
    shape = (geometry.outputs[1], taken, *geometry.kernel) if geometry.kernel else (taken, geometry.outputs[1])
    weight = numpy_helper.from_array(np.ones(shape, dtype=np.float32), "w")
    options: dict[str, Any] = {}
    if geometry.kernel:
        sizes = list(zip(geometry.inputs[2:], geometry.outputs[2:], geometry.kernel, strict=True))
        strides = [max(1, round(a / b)) for a, b, _ in sizes]
        pads = [max(0, (b - 1) * s + k - a) for (a, b, k), s in zip(sizes, strides, strict=True)]
        options = {
            "group": geometry.groups,
            "strides": strides,
            "pads": [*(p // 2 for p in pads), *(p - p // 2 for p in pads)],
        }
    node = helper.make_node("Conv" if geometry.kernel else "MatMul", ["x", "w"], ["y"], **options)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, geometry.inputs)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "layer", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return _opened(model.SerializeToString(), [torch.ones(geometry.inputs)])


class _Timer:
    """Times cut models against the whole one, each width once."""

    def __init__(self, model: nn.Module, structure: Structure, candidates: Sequence[Candidate], folder: Path) -> None:
        self._model, self._structure, self._candidates, self._folder = model, structure, candidates, folder
        self.known: dict[tuple[int, ...], float] = {}
        self._whole = self._runner([0] * len(candidates))

    def saved(self, counts: Sequence[int]) -> float:
        """Return the share of the whole model's median latency that goes with ``counts``."""
        key = tuple(counts)
        if key not in self.known:
            whole, small = interleaved([self._whole, self._runner(counts)], rounds=ROUNDS)
            self.known[key] = 1.0 - small / whole
        return self.known[key]

    def _runner(self, counts: Sequence[int]) -> Callable[[], object]:
        removed = allocate(self._candidates, 0.5, counts=counts)
        plan = self._structure.trial(removed)
        small = clone(self._model).cpu().float().eval()
        mask_(small, plan)
        cut_(small, plan)
        path = self._folder / f"{len(self.known)}.onnx"
        return _session(small, self._structure.example, path)


def interleaved(runs: Sequence[Callable[[], object]], *, rounds: int, least: float = 0.01) -> list[float]:
    """Return the median seconds of each, measured in turns that last ``least`` seconds or one call."""
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, times in zip(runs, taken, strict=True):
            repeats = max(1, int(least / max(1e-6, times[-1]))) if times else 1
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times.append((time.perf_counter() - start) / repeats)
    return [median(times) for times in taken]


def _session(model: nn.Module, example: Any, path: Path) -> Callable[[], object]:
    args, kwargs = synthesise(example, torch.device("cpu"), torch.float32)
    onnx_program(model, args, kwargs=kwargs).save(path)
    return _opened(path, [*args, *kwargs.values()])


def _opened(model: Path | bytes, inputs: Sequence[Any]) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tensors = [value.numpy() for value in inputs if isinstance(value, torch.Tensor)]
    feed = dict(zip([node.name for node in session.get_inputs()], tensors, strict=True))
    return lambda: session.run(None, feed)
