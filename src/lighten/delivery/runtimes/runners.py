"""One way to run a model, whether it is a file in its runtime or a torch module."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.signature import named_inputs, named_outputs
from lighten.errors import UserError
from lighten.utils.inputs import Call, map_tensors, run

Model = str | Path | nn.Module
"""A path to an ``.onnx``, ``.xml``, ``.tflite`` or ``.pte`` file, or a torch module."""


class Runner(Protocol):
    """A model ready to be called.

    Attributes:
        name: how messages call it.
        runtime: ``"onnxruntime"``, ``"openvino"``, ``"litert"``, ``"executorch"`` or ``"pytorch"``.
        threads: how many threads a call may use.
    """

    name: str
    runtime: str
    threads: int

    def feed(self, call: Call) -> Any:
        """Turn a call into what ``run`` takes; not part of what is timed."""

    def run(self, feed: Any) -> np.ndarray:
        """Return the logits, shape (batch, classes): the leading output."""

    def run_all(self, feed: Any) -> list[np.ndarray]:
        """Return all outputs, the leading one first.

        Raises:
            UserError: if the runtime refuses the batch, for instance its size.
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
    """An ONNX file in onnxruntime on the CPU: sequential, ``threads`` wide, its threads never spinning.

    With ``exact`` no sum of 8-bit products saturates, on no processor; that takes longer.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int = 1, *, exact: bool = False) -> None:
        self.name, self.threads = str(path), threads
        self.session = open_session(path, path, threads=threads, precise=exact)
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        return _by_name(self.name, self.inputs, call)

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Run the file once and return its leading output."""
        return self.run_all(feed)[0]

    def run_all(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the file once.

        Raises:
            UserError: if the runtime refuses the batch, for instance its size.
        """
        try:
            return [np.asarray(x) for x in self.session.run(None, feed)]
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.name}: cannot run this batch ({reason}); export it with a dynamic batch") from None


class OpenVinoRunner:
    """An OpenVINO file on the CPU: one stream, ``threads`` wide; what is not int8 is computed in float32."""

    runtime = "openvino"

    def __init__(self, path: Path, threads: int = 1) -> None:
        (openvino,) = need("openvino", "openvino")
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.name, self.threads = str(path), threads
        with _readable(path, "OpenVINO"), silent():
            core = openvino.Core()
            graph = core.read_model(path)
            self.model = core.compile_model(graph, "CPU", settings)
        self.graph = graph
        self.inputs = [entry.any_name for entry in self.model.inputs]

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return the call as arrays by input name: positional ones in the file's order."""
        return _by_name(self.name, self.inputs, call)

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Run the file once and return its leading output."""
        return self.run_all(feed)[0]

    def run_all(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the file once.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with _taken(self.name):
            return list(self.model(feed).to_tuple())

    def facts(self, name: str) -> int:
        """Return what ``export`` wrote into the file under ``name``.

        Raises:
            UserError: if it is not there.
        """
        if not self.graph.has_rt_info(["lighten", name]):
            raise _unknown(self.name, name)
        return int(self.graph.get_rt_info(["lighten", name]).value)


class LiteRtRunner:
    """A LiteRT file on the CPU with its XNNPACK delegate, ``threads`` wide.

    The file has a fixed batch, one as ``export`` writes it: a larger batch is run piece by piece, which is what its
    user does, and so is the latency that is measured. Where inputs or logits are int8 codes, turning numbers into
    codes and back is part of the run.
    """

    runtime = "litert"

    def __init__(self, path: Path, threads: int = 1) -> None:
        (litert,) = need("litert", "ai_edge_litert.interpreter")
        self.name, self.threads = str(path), threads
        with _readable(path, "LiteRT"), silent():
            self.interpreter = litert.Interpreter(str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def feed(self, call: Call) -> list[np.ndarray]:
        """Return the call as arrays by position; keywords in their order."""
        arrays = _by_position(self.name, [entry["shape"] for entry in self.inputs], call)
        return [
            x if np.issubdtype(entry["dtype"], np.integer) and x.dtype.kind == "f" else x.astype(entry["dtype"])
            for x, entry in zip(arrays, self.inputs, strict=True)
        ]

    def run(self, feed: list[np.ndarray]) -> np.ndarray:
        """Run the file, once a sample, and return its leading output."""
        return self.run_all(feed)[0]

    def run_all(self, feed: list[np.ndarray]) -> list[np.ndarray]:
        """Run the file, once a sample.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with _taken(self.name):
            return _piece_by_piece(feed, int(self.inputs[0]["shape"][0]), self._run)

    def _run(self, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
        for x, entry in zip(feed, self.inputs, strict=True):
            self.interpreter.set_tensor(entry["index"], x if x.dtype == entry["dtype"] else _codes(x, entry))
        self.interpreter.invoke()
        return [_numbers(self.interpreter.get_tensor(entry["index"]), entry) for entry in self.outputs]


class ExecuTorchRunner:
    """An ExecuTorch file on the CPU, ``threads`` wide.

    The file has a fixed batch, one as ``export`` writes it: a larger batch is run piece by piece, which is what its
    user does, and so is the latency that is measured. The threads are those of the whole process.
    """

    runtime = "executorch"

    def __init__(self, path: Path, threads: int = 1) -> None:
        runtime, library = need("executorch", "executorch.runtime", "executorch.extension.pybindings.portable_lib")
        self.name, self.threads = str(path), threads
        with _readable(path, "ExecuTorch"), silent():
            library._unsafe_reset_threadpool(threads)
            self.program = runtime.Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
        self.inputs = [self.method.metadata.input_tensor_meta(i) for i in range(self.method.metadata.num_inputs())]

    def feed(self, call: Call) -> list[np.ndarray]:
        """Return the call as arrays by position; keywords in their order."""
        return _by_position(self.name, [entry.sizes() for entry in self.inputs], call)

    def run(self, feed: list[np.ndarray]) -> np.ndarray:
        """Run the file, once a sample, and return its leading output."""
        return self.run_all(feed)[0]

    def run_all(self, feed: list[np.ndarray]) -> list[np.ndarray]:
        """Run the file, once a sample.

        Raises:
            UserError: if the runtime refuses the batch.
        """
        with _taken(self.name):
            return _piece_by_piece(feed, int(self.inputs[0].sizes()[0]), self._run)

    def facts(self, name: str) -> int:
        """Return what ``export`` wrote into the file under ``name``.

        Raises:
            UserError: if it is not there.
        """
        if name not in self.program.method_names:
            raise _unknown(self.name, name)
        return int(self.program.load_method(name).execute([])[0])

    def _run(self, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [x.float().numpy().copy() for x in self.method.execute([torch.from_numpy(x) for x in feed])]


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

    def run(self, feed: Call) -> np.ndarray:
        """Call the module once; bringing the logits to the CPU waits for an accelerator."""
        return self.run_all(feed)[0]

    @torch.no_grad()
    def run_all(self, feed: Call) -> list[np.ndarray]:
        """Call the module once and return all tensors of what it returns, the leading one first."""
        return [x.float().cpu().numpy() for x in named_outputs(run(self.module, feed)).values()]


def open_session(model: Path | bytes, name: Path, *, threads: int, optimise: bool = True, precise: bool = False) -> Any:
    """Open an onnxruntime session.

    Args:
        model: the file, or a serialised model.
        name: what an error message calls it.
        threads: intra-op threads.
        optimise: let onnxruntime fuse and rewrite the graph.
        precise: let no sum of 8-bit products saturate, as they may on x86 processors without VNNI instructions.

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
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: onnxruntime cannot read it ({reason}); export it again") from None


RUNNERS: dict[str, Callable[[Path, int], Runner]] = {
    ".onnx": OnnxRunner,
    ".xml": OpenVinoRunner,
    ".tflite": LiteRtRunner,
    ".pte": ExecuTorchRunner,
}
"""Who runs a file, by how its name ends."""


def _open_file(path: Path, threads: int) -> Runner:
    if path.suffix not in RUNNERS:
        raise UserError(f"{path}: expected a path that ends in {', '.join(RUNNERS)}, or a torch module")
    if not path.is_file():
        raise UserError(f"{path}: no such file; `lighten export RUN` makes a run's, lighten.export any model's")
    return RUNNERS[path.suffix](path, threads)


def _by_name(model: str, inputs: Sequence[str], call: Call) -> dict[str, np.ndarray]:
    args, kwargs = tree_map(_array, call)
    positional, named = _arrays(args), named_inputs(((), kwargs), np.ndarray)
    given = {**dict(zip(inputs, positional, strict=False)), **named}
    if len(positional) > len(inputs) or set(given) != set(inputs):
        raise UserError(
            f"{model}: takes {', '.join(inputs)}, "
            f"but a batch holds {len(positional)} unnamed input(s) and {', '.join(named) or 'no named one'}"
        )
    return {name: np.ascontiguousarray(value) for name, value in given.items()}


def _by_position(model: str, shapes: Sequence[Sequence[int]], call: Call) -> list[np.ndarray]:
    given = _arrays(tree_map(_array, call))
    if len(given) != len(shapes):
        raise UserError(f"{model}: takes {len(shapes)} input(s), but a batch holds {len(given)}")
    return [_filled(np.ascontiguousarray(value), shape) for value, shape in zip(given, shapes, strict=True)]


def _arrays(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, np.ndarray)]


def _filled(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return tokens (batch, length) filled up with zeros, which the mask leaves out, to the length that a file has."""
    if x.dtype.kind != "i" or x.ndim != 2 or len(shape) != 2 or x.shape[1] >= shape[1]:
        return x
    return np.pad(x, ((0, 0), (0, int(shape[1]) - x.shape[1])))


def _piece_by_piece(
    feed: Sequence[np.ndarray], size: int, run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Run batches of ``size`` and put their outputs together; the last one is filled up with its last sample."""
    samples = len(feed[0])
    pieces = []
    for start in range(0, samples, size):
        piece = [x[start : start + size] if x.ndim else x for x in feed]
        short = size - len(piece[0])
        pieces.append(run([np.concatenate([x, x[-1:].repeat(short, 0)]) for x in piece] if short else piece))
    return [np.concatenate(parts)[:samples] if parts[0].ndim else parts[0] for parts in zip(*pieces, strict=True)]


def _numbers(output: np.ndarray, entry: Any) -> np.ndarray:
    """Return an output of a LiteRT file in floating point."""
    if output.dtype.kind == "f" or not entry["quantization"][0]:
        return output.astype(np.float32)
    scale, zero_point = entry["quantization"]
    return (output.astype(np.float32) - zero_point) * np.float32(scale)


def _codes(x: np.ndarray, entry: Any) -> np.ndarray:
    """Return the codes of ``x`` for an integer input of a LiteRT file."""
    scale, zero_point = entry["quantization"]
    limits = np.iinfo(entry["dtype"])
    codes = np.rint(x * (np.float32(1) / np.float32(scale))) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(entry["dtype"])


def _unknown(model: str, name: str) -> UserError:
    return UserError(f"{model}: does not say its {name}, and they cannot be read off it; write it with lighten.export")


@contextmanager
def _readable(path: Path, runtime: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # runtimes' exceptions share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{path}: {runtime} cannot read it ({reason}); export it again") from None


@contextmanager
def _taken(model: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # runtimes' exceptions share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        shape = "give it the shape that it was exported with"
        raise UserError(f"{model}: cannot run this batch ({reason}); {shape}") from None


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
