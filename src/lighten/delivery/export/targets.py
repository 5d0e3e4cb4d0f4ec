"""Export of a model, or of those of a run, to files for any of the targets."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

from torch import nn

from lighten.delivery.export.onnx import OPSETS
from lighten.delivery.export.prepare import in_float
from lighten.delivery.export.request import Request
from lighten.delivery.folders.model import CONFIG, load
from lighten.delivery.folders.run import FLOAT_FILE, open_run, read_json
from lighten.delivery.folders.student import FIT
from lighten.delivery.progress import ProgressCallback, Stages, ignore_progress
from lighten.errors import UserError, did_you_mean
from lighten.quantization.post_training import mode_of, modes_of
from lighten.utils.files import disk_errors_as_user_errors
from lighten.utils.inputs import ExampleInput, example_of
from lighten.utils.preserve import preserved
from lighten.utils.targets import TARGETS


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
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write ``model`` as a file for the runtime of a target and return its path.

    A fake-quantized model is written in int8, a float model in float; if a part of a model is quantized, that part is
    in int8. If the runtime is installed, the file is run and compared with the model.

    ``onnx`` (onnxruntime) and ``openvino`` (``.xml``, with a ``.bin`` file beside it) take any batch and know inputs by
    name, as in ``export_onnx``. ``litert`` (``.tflite``) and ``executorch`` (``.pte``, computed by XNNPACK) take one
    sample in a call and know inputs by position, keywords in the order of ``example_input``; a quantized ``.tflite``
    takes int8 codes. In these two, the layer that computes the logits stays in float, with its trained weights. ``pt2``
    is a program of ``torch.export`` that PyTorch itself loads, with any batch and inputs by position.

    Args:
        model: not changed.
        example_input: a tensor, a tuple (positional) or a dict (keywords), also with lists or dicts of tensors in it;
            the first dimension is the batch.
        path: replaced atomically; ends in ``.onnx``, ``.xml``, ``.tflite``, ``.pte`` or ``.pt2``.
        target: ``"onnx"``, ``"openvino"``, ``"litert"``, ``"executorch"`` or ``"pt2"``.
        opset: for an ONNX file, 18 to 23; see :func:`export_onnx`.
        mode: for ``litert`` and a float model. ``"dynamic"`` stores int8 weights and quantizes activations in each
            call, ``"float16"`` stores weights in half precision.
        outputs: names of outputs to keep; by default the file has all that the model returns, see :func:`export_onnx`.
        batch: for ``onnx``, ``openvino`` and ``pt2``, see :func:`export_onnx`.
        dynamic: for ``onnx``, ``openvino`` and ``pt2``, see :func:`export_onnx`.

    Raises:
        UserError: if the target is unknown or its package is not installed, the path has another ending, the target has
            no such setting, fake-quantizers have no ranges yet, or the file does not compute what the model
            computes.

    Example:
        >>> export(nn.Linear(4, 2), torch.zeros(1, 4), "/tmp/linear.onnx").name
        'linear.onnx'
    """
    if target not in TARGETS:
        raise UserError(f"target={target!r}: {did_you_mean(str(target), TARGETS)}")
    request = Request(model, example_input, Path(path), TARGETS[target], opset, mode, outputs, batch, dynamic)
    _check(request)
    with preserved(model), _as_user_error(request):
        resolve_name(request.target.writer)(request)
    return request.path


def export_onnx(
    model: nn.Module,
    example_input: ExampleInput,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    outputs: Sequence[str] | None = None,
    batch: int | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write ``model`` as an ONNX file and return its path.

    A fake-quantized model is written with int8 weights, int32 biases and QuantizeLinear/DequantizeLinear pairs
    (QDQ), a float model in float. A ``"dynamic"`` model of ``quantize_post_training`` is written with int8 weights and
    DynamicQuantizeLinear, a ``"float16"`` one with half-precision weights that are cast to float32.

    The batch dimension is dynamic. For tokens (integers, (batch, length)) so is the length, in all inputs that share
    it, if the model takes any length. Inputs are called ``input`` (or by their keywords), the output ``logits``. Of
    several outputs each has the name of its key or field; in a tuple the second is ``output_1``. If an input has the
    same name, ``_out`` is added. The same model gives the same bytes.

    Args:
        model: not changed.
        example_input: a tensor, a tuple (positional) or a dict (keywords); its first dimension is the batch.
        path: replaced atomically.
        opset: of the ONNX file, 18 to 23. ``None`` takes 18, which onnxruntime 1.14 and later read. If the model
            computes attention, it takes 23, where attention is one operator and faster; 1.24 and later read it.
        outputs: names of outputs to keep, the leading one first; all by default.
        batch: number of samples in a call of the file; then only what ``dynamic`` names is open. ``None`` leaves the
            batch open; if the model fixes it, the file takes that of ``example_input``, and a warning says so.
        dynamic: open dimensions besides the batch, as ``{"input": {2: "height", 3: "width"}}``: names by the input's
            name (in the file, or in the forward) and the dimension's index; dimensions of one name have one size.
            If it is given, nothing is guessed: ``{}`` leaves only the batch open. The file is run with a smaller
            and a larger size of each.

    Raises:
        UserError: if the model fixes a dimension that should be open; otherwise as for :func:`export`.
    """
    return export(model, example_input, path, opset=opset, outputs=outputs, batch=batch, dynamic=dynamic)


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
        path = run / f"student{TARGETS[target].suffix}"
        stages(path.name)
        files.append(export(model, example, path, target=target))
    (run / FLOAT_FILE).unlink(missing_ok=True)
    if mode_of(model) is not None:
        stages(FLOAT_FILE)
        files.append(export_onnx(in_float(model), example, run / FLOAT_FILE, opset=opset))
    return files


def _check(request: Request) -> None:
    """Refuse what cannot be written, before anything is done."""
    target, opset, mode, batch = request.target, request.opset, request.mode, request.batch
    takes, name = target.settings, target.name
    if request.path.suffix != target.suffix:
        raise UserError(f"{request.path}: target {name!r} writes files that end in {target.suffix}")
    if opset is not None and "opset" not in takes:
        raise UserError(
            f"opset={opset}: only target {_who_takes('opset')} has operator sets, leave it out for {name!r}"
        )
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset={opset}: expected {OPSETS.start} to {OPSETS.stop - 1}")
    if batch is not None and ("batch" not in takes or isinstance(batch, bool) or batch < 1):
        raise UserError(f"batch={batch}: expected 1 or more samples a call, for target {_who_takes('batch')} alone")
    if request.dynamic is not None and "dynamic" not in takes:
        raise UserError(
            f"dynamic={request.dynamic}: files of target {name!r} have fixed sizes; it is for {_who_takes('dynamic')}"
        )
    if mode is not None and "mode" not in takes:
        raise UserError(f"mode={mode!r}: only target {_who_takes('mode')} has modes, leave it out for {name!r}")
    if mode is not None and modes_of(request.model):
        raise UserError(
            f"mode={mode!r}: the model is quantized already and written as it is; modes are for a float model"
        )


def _who_takes(setting: str) -> str:
    return " or ".join(repr(target.name) for target in TARGETS.values() if setting in target.settings)


def _reason(error: BaseException) -> str:
    """Return what a converter says, without colours; of a report, its summary."""
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    summary = re.search(r"Exception summary (?:<class '[^']*'>: )?(.+)", words)
    return (summary[1] if summary else words) or type(error).__name__


@contextmanager
def _as_user_error(request: Request) -> Iterator[None]:
    """Turn what a converter raises, of an operator that it lacks or a disk without room, into one line."""
    try:
        with disk_errors_as_user_errors(request.path, "be written"):
            yield
    except UserError:
        raise
    except Exception as error:  # converters' exceptions share no base class
        words = _reason(error.__cause__ or error)
        raise UserError(
            f"target {request.target.name!r} cannot take {type(request.model).__name__} ({words[:200]}); "
            "choose another target, or leave out what it does not know"
        ) from error
