"""One way to run a model, whether it is an ONNX file in onnxruntime or a torch module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.example import Call, logits_of, map_tensors

Model = str | Path | nn.Module
"""A path to an ``.onnx`` file, or a torch module."""


class Runner(Protocol):
    """A model ready to be called.

    Attributes:
        name: how messages call it.
        runtime: ``"onnxruntime"`` or ``"pytorch"``.
        threads: how many threads a call may use.
    """

    name: str
    runtime: str
    threads: int

    def feed(self, call: Call) -> Any:
        """Turn a call into what ``run`` takes; not part of what is timed."""

    def run(self, feed: Any) -> np.ndarray:
        """Return the logits, shape (batch, classes)."""


@contextmanager
def open_runner(model: Model, *, threads: int = 1) -> Iterator[Runner]:
    """Open a model for inference; a torch module is in eval mode meanwhile and gets its modes back.

    Raises:
        UserError: if the file is missing, is no ``.onnx`` file or cannot be read.
    """
    if not isinstance(model, nn.Module):
        yield OnnxRunner(Path(model), threads)
        return
    modes = {module: module.training for module in model.modules()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield TorchRunner(model.eval(), threads)
    finally:
        torch.set_num_threads(before)
        for module, training in modes.items():
            module.training = training


class OnnxRunner:
    """An ONNX file in onnxruntime on the CPU: sequential, ``threads`` wide, its threads never spinning."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int = 1) -> None:
        if path.suffix != ".onnx":
            raise UserError(f"{path}: expected a path that ends in .onnx, or a torch module")
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected an ONNX file, `lighten export RUN` makes a run's")
        self.name, self.threads = str(path), threads
        self.session = open_session(path, path, threads=threads)
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        args, kwargs = call
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        if len(args) > len(self.inputs) or set(given) != set(self.inputs):
            raise UserError(
                f"{self.name}: takes {', '.join(self.inputs)}, "
                f"but a batch holds {len(args)} unnamed input(s) and {', '.join(kwargs) or 'no named one'}"
            )
        return {name: np.ascontiguousarray(_array(value)) for name, value in given.items()}

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Run the file once.

        Raises:
            UserError: if the runtime refuses the batch, for instance its size.
        """
        try:
            return self.session.run(None, feed)[0]
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.name}: cannot run this batch ({reason}); export it with a dynamic batch") from None


class TorchRunner:
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
    def run(self, feed: Call) -> np.ndarray:
        """Call the module once; bringing the logits to the CPU waits for an accelerator."""
        return logits_of(self.module(*feed[0], **feed[1])).float().cpu().numpy()


def open_session(model: Path | bytes, name: Path, *, threads: int, optimise: bool = True) -> Any:
    """Open an onnxruntime session.

    Args:
        model: the file, or a serialised model.
        name: what an error message calls it.
        threads: intra-op threads.
        optimise: let onnxruntime fuse and rewrite the graph.

    Raises:
        UserError: if onnxruntime cannot read the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: onnxruntime cannot read it ({reason}); export it again") from None


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
