"""The interface of runners, which run a file in its runtime or a torch module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lighten.delivery.runtimes.signature import named_outputs
from lighten.errors import UserError
from lighten.utils.inputs import Call, map_tensors, run
from lighten.utils.modules import modes_kept
from lighten.utils.targets import TARGETS

Model = str | Path | nn.Module
"""A path to a file of one of the targets, such as ``.onnx``, or a torch module."""


class Size(TypedDict):
    """How large a model is.

    ``parameters`` are learned numbers, ``macs`` multiply-accumulates of one sample, ``bytes`` its file (a torch module:
    parameters and buffers in memory).
    """

    parameters: int
    macs: int
    bytes: int


class Runner(Protocol):
    """A model ready to be called.

    Attributes:
        name: how messages call it; of a file, its path.
        runtime: such as ``"onnxruntime"``, ``"litert"`` or ``"pytorch"``.
        threads: how many threads a call may use.
    """

    name: str
    runtime: str
    threads: int

    def feed(self, call: Call) -> Any:
        """Turn a call into what ``run`` takes; not part of what is timed."""

    def run(self, feed: Any) -> np.ndarray:
        """Run once and return the leading output: the logits, shape (batch, classes)."""
        return self.run_all(feed)[0]

    def run_all(self, feed: Any) -> list[np.ndarray]:
        """Run once and return all outputs, the leading one first.

        Raises:
            UserError: if the runtime refuses the batch, for instance its size.
        """

    def count(self, sample: Call) -> Size:
        """Return how large the model is.

        Args:
            sample: a call with a batch of one.

        Raises:
            UserError: if the file does not say.
        """


@contextmanager
def open_runner(model: Model, *, threads: int = 1) -> Iterator[Runner]:
    """Open a model for inference; a torch module is in eval mode meanwhile and gets its modes back.

    Raises:
        UserError: if the file is missing, of an unknown kind or cannot be read, or its runtime is not installed.
    """
    if not isinstance(model, nn.Module):
        yield _open_file(Path(model), threads)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with modes_kept(model):
            yield TorchRunner(model.eval(), threads)
    finally:
        torch.set_num_threads(before)


class TorchRunner(Runner):
    """A torch module where it stands, in PyTorch."""

    runtime = "pytorch"

    def __init__(self, module: nn.Module, threads: int = 1) -> None:
        self.name, self.threads, self.module = type(module).__name__, threads, module
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def feed(self, call: Call) -> Call:
        """Return the call on the module's device."""
        args, kwargs = map_tensors(lambda t: t.to(self.device), call)
        return args, kwargs

    @torch.no_grad()
    def run_all(self, feed: Call) -> list[np.ndarray]:
        """Call the module once; bringing what it returns to the CPU waits for an accelerator."""
        return [x.float().cpu().numpy() for x in named_outputs(run(self.module, feed)).values()]

    def count(self, sample: Call) -> Size:
        """Count the module as it computes ``sample``."""
        return count_torch(self.module, self.feed(sample))


def count_torch(module: nn.Module, sample: Call) -> Size:
    """Count a torch module; its MACs are half of what ``torch.utils.flop_counter`` counts on ``sample``."""
    tensors = [*module.parameters(), *module.buffers()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*sample[0], **sample[1])
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "macs": counter.get_total_flops() // 2,
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def _open_file(path: Path, threads: int) -> Runner:
    places = {target.suffix: target.runner for target in TARGETS.values()}
    if path.suffix not in places:
        raise UserError(f"{path}: expected a path that ends in {', '.join(places)}, or a torch module")
    if not path.is_file():
        raise UserError(f"{path}: no such file; `lighten export RUN` makes a run's, lighten.export any model's")
    opened: Runner = resolve_name(places[path.suffix])(path, threads)
    return opened
