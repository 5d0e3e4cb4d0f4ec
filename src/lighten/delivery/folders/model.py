"""Model folders: configuration, compression and weights of one model."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lighten.delivery.folders.own import (
    CLASS,
    PARTS,
    check_fresh,
    check_layers,
    class_of,
    done_to,
    example_for,
    misfit,
    needs_model,
    redone,
    take_types_,
)
from lighten.delivery.folders.run import read_json, write_json
from lighten.errors import UserError
from lighten.models import build_model
from lighten.models.registry import checked_shape, whole
from lighten.pruning.cut import shrink
from lighten.pruning.norms import restore_masks_
from lighten.pruning.plan import Plan
from lighten.quantization.post_training import HALVES, mode_of, quantize_as_
from lighten.quantization.settings import STATIC, TRAIN
from lighten.utils.clone import clone
from lighten.utils.compression import record_of
from lighten.utils.files import write_whole
from lighten.utils.inputs import Shape, example_of

SCHEMA = 1
MAX_SIZE, MAX_CLASSES = 1 << 16, 1 << 24
CONFIG, WEIGHTS, COMPRESSION = "config.json", "model.safetensors", "compression.json"


def save(model: nn.Module, folder: str | Path, **config: Any) -> Path:
    """Write ``model`` into ``folder``, from which ``load`` rebuilds it, and return the folder.

    Args:
        model: may be quantized, shrunk or both, or parts of it. A model from a registry can be built by name; for any
            other the folder names the class, and ``load(folder, model=…)`` needs an instance.
        folder: created if missing; its files are replaced one by one, the weights last.
        config: further entries of ``config.json``: ``data``, ``classes``, ``mean``, ``std``, ``training``.

    Raises:
        UserError: if its state has a value that is not a tensor, or nothing says where to place its quantizers again.
    """
    model = getattr(model, "_orig_mod", model)
    spec, done = record_of(model).spec, done_to(model)
    named = isinstance(spec, Mapping)
    about = {"model": dict(spec)} if named else {CLASS: class_of(model)}
    state = _state_of(model)
    folder = Path(folder)
    if not named:
        _check_examples(folder, done)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {**_of_transformers(model), "schema": SCHEMA, **about, **config})
    if done:
        own = {"plan": None, "quantization": None, **done.pop("", {})}
        if named:
            own.pop("example", None)  # its spec says that
        write_json(folder / COMPRESSION, {"schema": SCHEMA, **own, **({PARTS: done} if done else {})})
    else:
        (folder / COMPRESSION).unlink(missing_ok=True)
    half = HALVES.get(mode_of(model) or "")
    if half is not None:
        state = {name: _halved(tensor, half) for name, tensor in state.items()}
    write_whole(folder / WEIGHTS, lambda path: save_file(_unshared(state), path, metadata={"format": "pt"}))
    return folder


def save_tokenizer(folder: Path) -> None:
    """Put the tokenizer of a text model's data beside it, where ``AutoTokenizer.from_pretrained`` finds it."""
    from lighten.data import build_data

    config = read_json(folder / CONFIG, made_by="lighten shrink RUN")
    if len(config["model"]["input_shape"]) == 1 and "preprocessing" not in config:
        data: Any = build_data(config["data"]["name"], **config["data"].get("options", {}))
        if hasattr(data, "tokenizer"):
            data.tokenizer.save_pretrained(folder)


def _of_transformers(model: nn.Module) -> dict[str, Any]:
    """Return the config of a model of ``transformers``, whose ``from_pretrained`` reads it beside our own entries."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string") or not hasattr(model, "save_pretrained"):
        return {}
    return {**json.loads(config.to_json_string()), "architectures": [type(model).__name__]}


@overload
def load(folder: str | Path, *, runtime: Literal["torch"] = "torch", model: nn.Module | None = None) -> nn.Module: ...
@overload
def load(folder: str | Path, *, runtime: Literal["onnxruntime"]) -> Callable[..., Any]: ...
def load(folder: str | Path, *, runtime: str = "torch", model: nn.Module | None = None) -> Any:
    """Return the model of a folder, in eval mode.

    Args:
        folder: as ``save`` wrote it.
        runtime: ``"torch"`` for the module; ``"onnxruntime"`` for a callable from an array (batch, ...) to logits
            (batch, classes), which runs the ``<folder>.onnx`` beside it, or the ``model.onnx`` in it that
            ``push_to_hub`` makes of that.
        model: for a model that no registry builds: an instance of its class, with any weights, as it was before it was
            pruned and quantized. It is left as it is; its copy is shrunk, quantized and given the folder's weights.

    Raises:
        UserError: if a file is missing, damaged, or does not fit the others, or the model is not the folder's.
    """
    if "://" in str(folder):
        raise UserError(f"{folder} is a URL, expected a model folder; download it and check where it is from")
    folder = Path(folder)
    if runtime == "onnxruntime":
        return _open_onnx(folder)
    if runtime != "torch":
        raise UserError(f"runtime={runtime!r}: expected 'torch' or 'onnxruntime'")
    config, compression = read_json(folder / CONFIG, made_by="lighten shrink RUN"), _compression(folder)
    if model is None and "model" not in config and isinstance(config.get(CLASS), str):
        raise needs_model(folder / CONFIG, config[CLASS])
    if model is not None:
        check_fresh(folder / CONFIG, model, config.get(CLASS))
    try:
        built = build(config, compression, model)
    except Exception as error:  # they may describe anything
        raise UserError(f"{folder / CONFIG}: no model can be built of it ({_reason(error)})") from error
    try:
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError("no such file")
        state = load_file(folder / WEIGHTS)
        restore_masks_(built, state)
        if model is not None:
            _check_fits(folder, built, state)
            take_types_(built, state, _done(compression))
        built.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({_reason(error)}); write the folder again") from None
    if model is not None:
        _check_quantizers(folder, built, compression)
    return built.eval()


def build(config: Mapping[str, Any], compression: Mapping[str, Any], model: nn.Module | None = None) -> nn.Module:
    """Return the module that ``config.json`` and ``compression.json`` describe, with fresh weights.

    Args:
        config: with how to build it, or with the shape of its input.
        compression: what was done to it and to its parts.
        model: what it was made of, where that is not in a registry; left as it is.
    """
    spec: Any = config["model"] if model is None else config.get("model")
    shape: Shape = ()
    if spec is not None:
        shape = checked_shape(spec["name"], spec["input_shape"], most=MAX_SIZE)
    if model is not None:
        made = clone(getattr(model, "_orig_mod", model))
    else:
        if any(spec["options"].get(key) for key in ("path", "pretrained")):  # else loading fetches what it names
            raise UserError("a model folder holds its own weights, but its options name others")
        whole(spec["name"], "num_classes", spec["num_classes"], most=MAX_CLASSES)
        made = build_model(spec["name"], num_classes=spec["num_classes"], input_shape=shape, **spec["options"])

    def quantize_(part: nn.Module, what: Mapping[str, Any]) -> None:
        example = example_of(shape) if part is made and spec is not None else example_for(what)
        quantize_as_(part, what["quantization"], example)

    return redone(made, _done(compression), quantize_, lambda part, plan: cut(part, Plan.from_json(json.dumps(plan))))


def _done(compression: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"": compression, **compression.get(PARTS, {})}


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise UserError(
            f"{type(model).__name__} cannot be saved: {other!r} of its state is a {type(state[other]).__name__}, and a "
            "folder holds tensors alone"
        )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _check_examples(folder: Path, done: Mapping[str, Mapping[str, Any]]) -> None:
    for name, what in done.items():
        settings = what["quantization"]
        if settings is not None and settings.get("mode", TRAIN) in (TRAIN, STATIC):
            try:
                example_for(what)
            except UserError as error:
                raise UserError(
                    f"{folder}: {name or 'the model'} was quantized, and {error}; quantize it again with an "
                    "example_input of tensors and plain values"
                ) from None


def _check_fits(folder: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    problem = misfit(model, state)
    if problem is not None:
        raise UserError(f"{folder / WEIGHTS}: {problem}; give model= the settings that it was made with")


def _check_quantizers(folder: Path, model: nn.Module, compression: Mapping[str, Any]) -> None:
    try:
        check_layers(model, _done(compression))
    except UserError as error:
        raise UserError(f"{folder / COMPRESSION}: {error}; give load the code that it was saved with") from None


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """Shrink, in silence where a config of ``transformers`` has no words for the result: here the plan rebuilds it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot say the widths of the cut model")
        return shrink(model, plan)


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _compression(folder: Path) -> dict[str, Any]:
    path = folder / COMPRESSION
    return read_json(path, made_by="lighten shrink RUN") if path.exists() else {}


def _halved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``tensor`` in 16 bits if it loses nothing by it."""
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    half = tensor.to(dtype)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tied tensors storage of their own, as the file format wants."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen and tensor.numel():
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return state


def _open_onnx(folder: Path) -> Callable[..., Any]:
    import numpy as np

    from lighten.delivery.runtimes.onnx_session import open_session

    path, inside = folder.with_name(f"{folder.name}.onnx"), folder / "model.onnx"
    path = inside if inside.exists() and not path.exists() else path
    if not path.exists():
        raise UserError(f"{path}: no such file; make it with `lighten export RUN`")
    session = open_session(path, path, threads=1)
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: Any) -> Any:
        arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in inputs]
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return run
