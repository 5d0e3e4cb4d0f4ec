"""A trained model as a file that an integer runtime reads."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lighten.clone import clone
from lighten.delivery.artifacts import open_run, read_json
from lighten.delivery.count import work_of
from lighten.delivery.executorch import FORM as EXECUTORCH
from lighten.delivery.executorch import executorch_bytes
from lighten.delivery.folder import CONFIG, load
from lighten.delivery.litert import FORM as LITERT
from lighten.delivery.litert import litert_bytes
from lighten.delivery.onnx_modes import dynamic_integers, store_halves
from lighten.delivery.onnx_stem import widen_stems
from lighten.delivery.openvino import write_openvino
from lighten.delivery.progress import Say, Stages, silent
from lighten.delivery.quiet import quiet
from lighten.delivery.student import FIT
from lighten.errors import UserError, did_you_mean
from lighten.example import ExampleInput, as_call, example_of, logits_of, map_tensors
from lighten.quantization.insert import BANK, bank_of, convert
from lighten.quantization.layers import Form, unbecome
from lighten.quantization.post_training import DYNAMIC, HALVES, DynamicLayer, convert_dynamic, left_in_float, mode_of
from lighten.quantization.sites import Stage
from lighten.training.files import disk_told, replace_file

OPSET, ATTENTION = 18, 23
"""Operator sets: the one that onnxruntime 1.14 and later read, and the first in which attention is one operator.

The latter takes a quarter off the time of an encoder's int8 file; onnxruntime reads it from 1.24 on.
"""

OPSETS = range(18, 24)
"""Operator sets that can be asked for; below 18 per-channel zero points and reductions take other forms."""

CONTIGUOUS = torch.contiguous_format

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite", "executorch": ".pte"}
"""What can be written, and how the file's name ends."""


def export(
    model: nn.Module,
    example_input: ExampleInput,
    path: str | os.PathLike[str],
    *,
    target: str = "onnx",
    opset: int | None = None,
    mode: str | None = None,
) -> Path:
    """Write ``model`` as a file for one of four runtimes and return its path.

    A fake-quantized model is written in int8, a float model as it is. ``onnx`` (onnxruntime) and ``openvino``
    (``.xml``, with a ``.bin`` file beside it) take any batch and know inputs by name, as ``export_onnx`` has it.
    ``litert`` (``.tflite``) and ``executorch`` (``.pte``, computed by XNNPACK) take one sample a call and know inputs
    by position, keywords in the order of ``example_input``; a quantized ``.tflite`` takes int8 codes. In these two the
    layer that makes the logits is computed in float, with the weights that it was trained with.

    Args:
        model: left as it is.
        example_input: a tensor, a tuple (positional) or a dict (keywords); its first dimension is the batch.
        path: replaced atomically; ends in ``.onnx``, ``.xml``, ``.tflite`` or ``.pte``.
        target: ``"onnx"``, ``"openvino"``, ``"litert"`` or ``"executorch"``.
        opset: of an ONNX file, 18 to 23; see :func:`export_onnx`.
        mode: for ``litert`` and a float model. ``"dynamic"`` stores int8 weights and quantizes activations as they
            come, ``"float16"`` stores weights in half.

    Raises:
        UserError: if the target is unknown or its package is not installed, the path ends otherwise, a setting is not
            the target's, or fake-quantizers were inserted but have no ranges.

    Example:
        >>> export(nn.Linear(4, 2), torch.zeros(1, 4), "/tmp/linear.onnx").name
        'linear.onnx'
    """
    path = Path(path)
    _check(model, path, target, opset, mode)
    if target == "onnx":
        return export_onnx(model, example_input, path, opset=opset)
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == "openvino":
        with tempfile.TemporaryDirectory() as folder:
            onnx = Path(folder) / "model.onnx"
            _write(_onnx(model, example_input, path, OPSETS.start), onnx)
            graph, inputs = _one_sample(model, example_input, Form())
            with _eval_mode(model), _told(model, target, path):
                write_openvino(onnx, path, work_of(graph, inputs))
        return path
    graph, inputs = _one_sample(model, example_input, LITERT if target == "litert" else EXECUTORCH)
    with _eval_mode(model), _told(model, target, path):
        if target == "litert":
            content = litert_bytes(graph, inputs, mode=mode)
        else:
            content = executorch_bytes(graph, inputs, work_of(graph, inputs))
    replace_file(path, lambda file: file.write(content))
    return path


def export_onnx(
    model: nn.Module, example_input: ExampleInput, path: str | os.PathLike[str], *, opset: int | None = None
) -> Path:
    """Write ``model`` as an ONNX file and return its path.

    A fake-quantized model is written with int8 weights, int32 biases and QuantizeLinear/DequantizeLinear pairs
    (QDQ), a float model as it is; what ``quantize_post_training`` made as ``"dynamic"`` with int8 weights and
    DynamicQuantizeLinear, as ``"float16"`` with weights in half that are cast to float32. The batch dimension is
    dynamic, of tokens (integers, (batch, length)) the length too; inputs are called ``input`` (or by their keywords),
    the output is ``logits``. The same model gives the same bytes.

    Args:
        model: left as it is.
        example_input: a tensor, a tuple (positional) or a dict (keywords); its first dimension is the batch.
        path: replaced atomically.
        opset: of the ONNX file, 18 to 23. ``None`` takes 18, which onnxruntime 1.14 and later read, or 23, which 1.24
            and later read, where the model computes attention: that is one operator there, and faster.

    Raises:
        UserError: if the opset is out of range, or fake-quantizers were inserted but have no ranges.
    """
    path = Path(path)
    proto = _onnx(model, example_input, path, opset)
    widen_stems(proto)
    _write(proto, path)
    return path


def _onnx(model: nn.Module, example_input: ExampleInput, path: Path, opset: int | None) -> Any:
    """Return the model as ``onnx.ModelProto``; ``path`` is what an error names."""
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset={opset}: expected {OPSETS.start} to {OPSETS.stop - 1}")
    args, kwargs = map_tensors(_two_samples, as_call(example_input))
    graph = _Graph(_exported(model, Form()), len(args), list(kwargs))
    names = [*(["input"] if len(args) == 1 else [f"input_{i}" for i in range(len(args))]), *kwargs]
    dynamic = tuple(_dynamic_dimensions(x) for x in (*args, *kwargs.values()))
    with quiet(), _eval_mode(model), _told(model, "onnx", path):
        if opset is None:
            opset = ATTENTION if _attends(graph, (*args, *kwargs.values())) else OPSET
        program = torch.onnx.export(
            graph,
            (*args, *kwargs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    mode, proto = mode_of(model), program.model_proto
    if mode == DYNAMIC:
        proto = dynamic_integers(proto, left_in_float(model))
    elif mode in HALVES:
        store_halves(proto, mode, left_in_float(model))
    return proto


FLOAT = "student_float32.onnx"
"""The quantized student in float32: what the int8 file is timed against."""


def export_run(run: str | os.PathLike[str], *, say: Say = silent) -> list[Path]:
    """Write ``student.onnx`` from ``student/``, and ``teacher.onnx`` and ``dense.onnx`` where their folders are there.

    Beside ``student.onnx`` come the files of other targets, and ``student_float32.onnx`` where it is quantized.

    Args:
        run: the run folder.
        say: called with the name of each file before it is written, and the share of files that are.

    Raises:
        UserError: if there is no student yet, a folder is damaged, or a target's package is not installed.
    """
    run = open_run(Path(run))
    if not (run / "student" / CONFIG).exists():
        raise UserError(f"{run / 'student'}: no such model folder; make it with `lighten shrink {run}`")
    settings = read_json(run / FIT, made_by="lighten train recipe=…")
    targets, opset, files = settings.get("targets", ["onnx"]), settings.get("opset"), []
    roles = [role for role in ("teacher", "dense", "student") if (run / role / CONFIG).exists()]
    others = [target for target in targets if target != "onnx"]
    quantized = any(settings.get(key) is not None for key in ("quantization", "after_training"))
    stages = Stages(say, len(roles) + len(others) + quantized)
    for role in roles:
        stages(f"{role}.onnx")
        model = load(run / role)
        shape = read_json(run / role / CONFIG, made_by=f"lighten shrink {run}")["model"]["input_shape"]
        example = example_of(shape)
        files.append(export_onnx(model, example, run / f"{role}.onnx", opset=opset))
    for target in others:
        path = run / f"student{SUFFIXES[target]}"
        stages(path.name)
        files.append(_export_target(model, example, path, target))
    (run / FLOAT).unlink(missing_ok=True)
    if mode_of(model) is not None:
        stages(FLOAT)
        files.append(export_onnx(in_float(model), example, run / FLOAT, opset=opset))
    return files


def in_float(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized model that computes in float32, with the same weights."""
    model = clone(model)
    if hasattr(model, BANK):
        bank_of(model).stage = Stage.OFF
    for module in model.modules():
        if isinstance(module, DynamicLayer):
            unbecome(module)
    model.lighten_quantization = None  # type: ignore[assignment]
    return model


def _export_target(model: nn.Module, example: ExampleInput, path: Path, target: str) -> Path:
    mode = mode_of(model)
    if target == "litert" and mode in (DYNAMIC, *HALVES):
        return export(in_float(model), example, path, target=target, mode=mode)
    return export(model, example, path, target=target)


def _check(model: nn.Module, path: Path, target: str, opset: int | None, mode: str | None) -> None:
    """Refuse what cannot be written, before anything is done."""
    if target not in SUFFIXES:
        raise UserError(f"target={target!r}: {did_you_mean(str(target), SUFFIXES)}")
    if path.suffix != SUFFIXES[target]:
        raise UserError(f"{path}: target {target!r} writes files that end in {SUFFIXES[target]}")
    if opset is not None and target != "onnx":
        raise UserError(f"opset={opset}: only target 'onnx' has operator sets, leave it out for {target!r}")
    if mode is not None and target != "litert":
        raise UserError(f"mode={mode!r}: only target 'litert' has modes, leave it out for {target!r}")
    if mode is not None and hasattr(model, BANK):
        raise UserError(f"mode={mode!r}: the model is fake-quantized and written in int8; modes are for a float model")


def _one_sample(model: nn.Module, example_input: ExampleInput, form: Form) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the module to export and its inputs by position, with a batch of one."""
    args, kwargs = map_tensors(_first_sample, as_call(example_input))
    plain: Any = clone(_exported(model, form))  # LiteRT's converter misreads channels-last tensors
    return _Graph(plain.to(memory_format=CONTIGUOUS), len(args), list(kwargs)), (*args, *kwargs.values())


def _exported(model: nn.Module, form: Form) -> nn.Module:
    """Return what is traced, on the CPU, where codes come out the same whatever device the model is on."""
    if any(x.device.type != "cpu" for x in (*model.parameters(), *model.buffers())):
        model = clone(model).cpu()
    if mode_of(model) == DYNAMIC:
        return convert_dynamic(model)
    return convert(model, form) if _is_on(model) else model


def _is_on(model: nn.Module) -> bool:
    """Return whether fake-quantizers were inserted, and not switched off to export what was trained in float."""
    return hasattr(model, BANK) and mode_of(model) is not None


class _Graph(nn.Module):
    """The model as a graph has it: keywords are further positional inputs, logits the one output."""

    def __init__(self, model: nn.Module, positional: int, keywords: list[str]) -> None:
        super().__init__()
        self.model, self.positional, self.keywords = model, positional, keywords

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.keywords, inputs[self.positional :], strict=True))
        return logits_of(self.model(*inputs[: self.positional], **named))


class _Attention(TorchFunctionMode):
    """While active, notices whether attention is computed."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _attends(graph: nn.Module, inputs: tuple[Any, ...]) -> bool:
    with torch.no_grad(), _Attention() as attention:
        graph(*inputs)
    return attention.seen


def _first_sample(x: Tensor) -> Tensor:
    return x[:1].cpu().clone(memory_format=CONTIGUOUS) if x.ndim else x.cpu()


def _two_samples(x: Tensor) -> Tensor:
    """Return ``x`` with two samples: a batch of one would be taken for a constant."""
    return torch.cat([x, x])[:2].cpu() if x.ndim else x.cpu()


def _dynamic_dimensions(x: Any) -> dict[int, Any] | None:
    """Return the batch, and of tokens (batch, length) also the length."""
    if not isinstance(x, Tensor) or not x.ndim:
        return None
    return dict.fromkeys(range(2 if _is_tokens(x) else 1), torch.export.Dim.DYNAMIC)


def _is_tokens(x: Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point()


def _write(proto: Any, path: Path) -> None:
    import onnx

    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
    ):
        del part.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("doc_string")
    del proto.graph.value_info[:]
    proto.graph.name = "lighten"
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, ("batch", "length"), strict=False):
            if dimension.dim_param:
                dimension.dim_param = name
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(proto.SerializeToString(deterministic=True)))


@contextmanager
def _told(model: nn.Module, target: str, path: Path) -> Iterator[None]:
    """Turn what a converter raises, of an operator that it lacks or a disk without room, into one line."""
    try:
        with disk_told(path, "be written"):
            yield
    except UserError:
        raise
    except Exception as error:  # converters' exceptions share no base class
        words = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(
            f"target {target!r} cannot take {type(model).__name__} ({words[:200]}); choose another target, or leave "
            "out what it does not know"
        ) from error


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
