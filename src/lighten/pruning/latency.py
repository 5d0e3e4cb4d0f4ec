"""Milliseconds: what widths cost in a runtime, measured."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, Sensitivity, allocate, pressure
from lighten.pruning.check import clone, synthesise
from lighten.pruning.groups import Structure
from lighten.pruning.mask import mask_
from lighten.pruning.plan import Plan
from lighten.pruning.settings import Settings
from lighten.pruning.shrink import cut_

PROBES = 9
"""Widths that are measured at most."""
ROUNDS = 15
CLOSE = 0.01
"""A latency is reached when it is this near, as a share of the whole model's."""


def reach_latency(
    model: nn.Module,
    structure: Structure,
    candidates: Sequence[Candidate],
    settings: Settings,
    sensitivities: Sequence[Sensitivity],
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
        low, high = 0.0, 1.0
        best = (float("inf"), at(0.0), 0.0)
        most = timer.saved(at(0.97))
        if most < settings.amount - CLOSE:
            raise UserError(
                f"amount={settings.amount} of the latency cannot be reached: {most:.2f} at the narrowest; ask for less"
            )
        guess = settings.amount / (1.0 + settings.amount)
        for _ in range(PROBES):
            counts = at(guess)
            saved = timer.saved(counts)
            best = min(best, (abs(saved - settings.amount), counts, saved))
            if best[0] <= CLOSE:
                break
            low, high = (guess, high) if saved < settings.amount else (low, guess)
            guess = (low + high) / 2
    return best[1], best[2]


class _Timer:
    """Times cut models against the whole one, each width once."""

    def __init__(self, model: nn.Module, structure: Structure, candidates: Sequence[Candidate], folder: Path) -> None:
        self._model, self._structure, self._candidates, self._folder = model, structure, candidates, folder
        self._known: dict[tuple[int, ...], float] = {}
        self._whole = self._runner([0] * len(candidates))

    def saved(self, counts: Sequence[int]) -> float:
        """Return the share of the whole model's median latency that goes with ``counts``."""
        key = tuple(counts)
        if key not in self._known:
            whole, small = interleaved([self._whole, self._runner(counts)], rounds=ROUNDS)
            self._known[key] = 1.0 - small / whole
        return self._known[key]

    def _runner(self, counts: Sequence[int]) -> Callable[[], object]:
        removed = allocate(self._candidates, 0.5, counts=counts)
        plan = Plan.of_cuts(self._structure.cuts(removed), self._structure.example)
        small = clone(self._model).cpu().float().eval()
        mask_(small, plan)
        cut_(small, plan)
        path = self._folder / f"{len(self._known)}.onnx"
        return _session(small, self._structure.example, path)


def interleaved(runs: Sequence[Callable[[], object]], *, rounds: int) -> list[float]:
    """Return the median seconds of each, measured in turns."""
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, times in zip(runs, taken, strict=True):
            repeats = max(1, int(0.01 / max(1e-6, times[-1]))) if times else 1
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times.append((time.perf_counter() - start) / repeats)
    return [median(times) for times in taken]


def _session(model: nn.Module, example: Any, path: Path) -> Callable[[], object]:
    import onnxruntime

    args, kwargs = synthesise(example, torch.device("cpu"), torch.float32)
    program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return _opened(onnxruntime, path, [*args, *kwargs.values()])


def _opened(onnxruntime: Any, path: Path, inputs: Sequence[Any]) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tensors = [value.numpy() for value in inputs if isinstance(value, torch.Tensor)]
    feed = dict(zip([node.name for node in session.get_inputs()], tensors, strict=True))
    return lambda: session.run(None, feed)
