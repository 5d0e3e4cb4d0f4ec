"""A trained model as a file that an integer runtime reads."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten.delivery.export.dimensions import with_samples
from lighten.delivery.export.executorch import FORMAT as EXECUTORCH
from lighten.delivery.export.executorch import executorch_bytes
from lighten.delivery.export.litert import FORMAT as LITERT
from lighten.delivery.export.litert import litert_bytes
from lighten.delivery.export.onnx import OPSETS, proved_onnx
from lighten.delivery.export.openvino import write_openvino
from lighten.delivery.export.prepare import Source, source_of
from lighten.delivery.export.proof import prove
from lighten.delivery.export.work import work_of
from lighten.delivery.folders.model import CONFIG, load
from lighten.delivery.folders.run import open_run, read_json
from lighten.delivery.folders.student import FIT
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.errors import UserError, did_you_mean
from lighten.quantization.fake_quant import forbidden
from lighten.quantization.install import unquantize_
from lighten.quantization.integer_layers import QdqFormat
from lighten.quantization.post_training import DYNAMIC, HALVES, mode_of, modes_of
from lighten.utils.clone import clone
from lighten.utils.files import disk_errors_as_user_errors, replace_file
from lighten.utils.inputs import ExampleInput, example_of
from lighten.utils.preserve import preserved

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
    outputs: Sequence[str] | None = None,
    batch: int | None = None,
) -> Path:
    """Write ``model`` as a file for one of four runtimes and return its path.

    A fake-quantized model is written in int8, a float model as it is; of a model of which a part is quantized, that
    part is. Where its runtime is installed, the file is run and compared with the model. ``onnx`` (onnxruntime) and
    ``openvino`` (``.xml``, with a ``.bin`` file beside it) take any batch and know inputs by name, as ``export_onnx``
    has it.
    ``litert`` (``.tflite``) and ``executorch`` (``.pte``, computed by XNNPACK) take one sample a call and know inputs
    by position, keywords in the order of ``example_input``; a quantized ``.tflite`` takes int8 codes. In these two the
    layer that makes the logits is computed in float, with the weights that it was trained with.

    Args:
        model: left as it is.
        example_input: a tensor, a tuple (positional) or a dict (keywords), also with lists or dicts of tensors in it;
            the first dimension is the batch.
        path: replaced atomically; ends in ``.onnx``, ``.xml``, ``.tflite`` or ``.pte``.
        target: ``"onnx"``, ``"openvino"``, ``"litert"`` or ``"executorch"``.
        opset: of an ONNX file, 18 to 23; see :func:`export_onnx`.
        mode: for ``litert`` and a float model. ``"dynamic"`` stores int8 weights and quantizes activations as they
            come, ``"float16"`` stores weights in half.
        outputs: names of those to keep; by default the file has all that the model returns, see :func:`export_onnx`.
        batch: for ``onnx`` and ``openvino``, see :func:`export_onnx`.

    Raises:
        UserError: if the target is unknown or its package is not installed, the path ends otherwise, a setting is not
            the target's, fake-quantizers were inserted but have no ranges, or the file does not compute what the model
            computes.

    Example:
        >>> export(nn.Linear(4, 2), torch.zeros(1, 4), "/tmp/linear.onnx").name
        'linear.onnx'
    """
    path = Path(path)
    _check(model, path, target, opset, mode, batch)
    with preserved(model), _as_user_error(model, target, path):
        if target in ("onnx", "openvino"):
            _export_graph(source_of(model, example_input, outputs), path, target, opset, batch)
        else:
            _export_sample(model, example_input, path, target, mode, outputs)
    return path


def export_onnx(
    model: nn.Module,
    example_input: ExampleInput,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    outputs: Sequence[str] | None = None,
    batch: int | None = None,
) -> Path:
    """Write ``model`` as an ONNX file and return its path.

    A fake-quantized model is written with int8 weights, int32 biases and QuantizeLinear/DequantizeLinear pairs
    (QDQ), a float model as it is; what ``quantize_post_training`` made as ``"dynamic"`` with int8 weights and
    DynamicQuantizeLinear, as ``"float16"`` with weights in half that are cast to float32. The batch dimension is
    dynamic, of tokens (integers, (batch, length)) the length too where the model takes any, in all inputs that share
    it. Inputs are called ``input`` (or by their keywords), the output is ``logits``. Of several outputs each has the
    name of its key or field, in a tuple the second is ``output_1``; one that an input has gets ``_out`` behind it. The
    same model gives the same bytes.

    Args:
        model: left as it is.
        example_input: a tensor, a tuple (positional) or a dict (keywords); its first dimension is the batch.
        path: replaced atomically.
        opset: of the ONNX file, 18 to 23. ``None`` takes 18, which onnxruntime 1.14 and later read, or 23, which 1.24
            and later read, where the model computes attention: that is one operator there, and faster.
        outputs: names of those to keep, the leading one first; all by default.
        batch: how many samples the file takes a call, for a model that fixes it; ``None`` leaves it open.

    Raises:
        UserError: as :func:`export`.
    """
    return export(model, example_input, path, opset=opset, outputs=outputs, batch=batch)


FLOAT = "student_float32.onnx"
"""The quantized student in float32: what the int8 file is timed against."""


def export_run(run: str | os.PathLike[str], *, on_progress: ProgressCallback = ignore_progress) -> list[Path]:
    """Write ``student.onnx`` from ``student/``, and ``teacher.onnx`` and ``dense.onnx`` where their folders are there.

    Beside ``student.onnx`` come the files of other targets, and ``student_float32.onnx`` where it is quantized.

    Args:
        run: the run folder.
        on_progress: called with the name of each file before it is written, and the share of files that are.

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
    stages = Stages(on_progress, len(roles) + len(others) + quantized)
    for role in roles:
        stages(f"{role}.onnx")
        model = load(run / role)
        shape = read_json(run / role / CONFIG, made_by=f"lighten shrink {run}")["model"]["input_shape"]
        example = example_of(shape)
        files.append(export_onnx(model, example, run / f"{role}.onnx", opset=opset))
    for target in others:
        path = run / f"student{SUFFIXES[target]}"
        stages(path.name)
        files.append(export(model, example, path, target=target))
    (run / FLOAT).unlink(missing_ok=True)
    if mode_of(model) is not None:
        stages(FLOAT)
        files.append(export_onnx(in_float(model), example, run / FLOAT, opset=opset))
    return files


def in_float(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized model that computes in float32, with the same weights."""
    return unquantize_(clone(model))


def _export_graph(source: Source, path: Path, target: str, opset: int | None, batch: int | None) -> None:
    """Write an ONNX file, or OpenVINO's pair of files by way of one."""
    wide = target == "onnx"
    opset = opset if wide else OPSETS.start
    with tempfile.TemporaryDirectory() as folder:
        content = proved_onnx(source, Path(folder) / "model.onnx", path, opset, batch, wide)
        path.parent.mkdir(parents=True, exist_ok=True)
        if wide:
            replace_file(path, lambda file: file.write(content))
            return
        sample = with_samples(source.inputs, 1)
        write_openvino(Path(folder) / "model.onnx", path, work_of(source.converted(QdqFormat()), sample))


def _export_sample(
    model: nn.Module, example: ExampleInput, path: Path, target: str, mode: str | None, outputs: Sequence[str] | None
) -> None:
    """Write a file that takes one sample a call."""
    modes = modes_of(model)
    for other in modes & {DYNAMIC, *HALVES}:
        if target != "litert" or modes != {other} or mode_of(model) is None:
            raise UserError(
                f"target {target!r} has no form of a model that mode {other!r} quantized"
                f"{' in part' if target == 'litert' else ''}; choose target 'onnx', or quantize all of it as 'static'"
            )
        model, mode = in_float(model), other
    source = source_of(model, example, outputs)
    plain = torch.contiguous_format  # LiteRT's converter misreads channels-last tensors
    sample = tuple(x.clone(memory_format=plain) for x in with_samples(source.inputs, 1))
    graph: Any = source.converted(LITERT if target == "litert" else EXECUTORCH)
    graph = graph.to(memory_format=plain)
    with forbidden():
        if target == "litert":
            content = litert_bytes(graph, sample, mode=mode)
        else:
            content = executorch_bytes(graph, sample, work_of(graph, sample))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{path.suffix}"
        file.write_bytes(content)
        if _runs(target):
            advice = "choose another target, or leave out what it does not know"
            prove(
                file, source.network, [sample], quantized=source.quantized or mode is not None, advice=advice, name=path
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))


def _runs(target: str) -> bool:
    """Return whether the runtime of a target is installed, which need not be where its files are made."""
    package = {"litert": "ai_edge_litert", "executorch": "executorch"}[target]
    return importlib.util.find_spec(package) is not None


def _check(model: nn.Module, path: Path, target: str, opset: int | None, mode: str | None, batch: int | None) -> None:
    """Refuse what cannot be written, before anything is done."""
    if target not in SUFFIXES:
        raise UserError(f"target={target!r}: {did_you_mean(str(target), SUFFIXES)}")
    if path.suffix != SUFFIXES[target]:
        raise UserError(f"{path}: target {target!r} writes files that end in {SUFFIXES[target]}")
    if opset is not None and target != "onnx":
        raise UserError(f"opset={opset}: only target 'onnx' has operator sets, leave it out for {target!r}")
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset={opset}: expected {OPSETS.start} to {OPSETS.stop - 1}")
    if batch is not None and (target not in ("onnx", "openvino") or isinstance(batch, bool) or batch < 1):
        raise UserError(f"batch={batch}: expected 1 or more samples a call, for target 'onnx' or 'openvino' alone")
    if mode is not None and target != "litert":
        raise UserError(f"mode={mode!r}: only target 'litert' has modes, leave it out for {target!r}")
    if mode is not None and modes_of(model):
        raise UserError(
            f"mode={mode!r}: the model is quantized already and written as it is; modes are for a float model"
        )


@contextmanager
def _as_user_error(model: nn.Module, target: str, path: Path) -> Iterator[None]:
    """Turn what a converter raises, of an operator that it lacks or a disk without room, into one line."""
    try:
        with disk_errors_as_user_errors(path, "be written"):
            yield
    except UserError:
        raise
    except Exception as error:  # converters' exceptions share no base class
        words = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(
            f"target {target!r} cannot take {type(model).__name__} ({words[:200]}); choose another target, or leave "
            "out what it does not know"
        ) from error
