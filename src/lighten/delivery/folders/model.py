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

from lighten.delivery.folders.run import read_json, write_json
from lighten.errors import UserError
from lighten.models import build_model
from lighten.models.registry import whole
from lighten.pruning.cut import shrink
from lighten.pruning.norms import restore_masks_
from lighten.pruning.plan import Plan
from lighten.quantization.activation_quantizers import QUANTIZERS
from lighten.quantization.post_training import HALVES, mode_of, quantize_as_
from lighten.quantization.table import rows_as_json
from lighten.utils.compression import record_of
from lighten.utils.files import write_whole
from lighten.utils.inputs import example_of

SCHEMA = 1
MAX_SIZE, MAX_CLASSES = 1 << 16, 1 << 24
CONFIG, WEIGHTS, COMPRESSION = "config.json", "model.safetensors", "compression.json"


def save(model: nn.Module, folder: str | Path, **config: Any) -> Path:
    """Write ``model`` into ``folder`` so that ``load`` gives it back, and return the folder.

    Args:
        model: from a registry (it carries how to build it); may be quantized, shrunk or both.
        folder: made where missing; its files are replaced one by one, the weights last.
        config: further entries of ``config.json``: ``data``, ``classes``, ``mean``, ``std``, ``training``.

    Raises:
        UserError: if nobody knows how to build the model again.
    """
    record = record_of(model)
    if not isinstance(record.spec, Mapping):
        raise UserError(
            f"{type(model).__name__} was not built by name, so that it could not be built again; "
            "register its builder with @lighten.register_model and make it with lighten.build_model"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {**_of_transformers(model), "schema": SCHEMA, "model": dict(record.spec), **config})
    plan, settings = record.plan, record.quantization
    if plan is not None or settings is not None:
        compression = {"plan": json.loads(plan.to_json()) if plan is not None else None, "quantization": settings}
        layers = {"layers": rows_as_json(model)} if hasattr(model, QUANTIZERS) else {}
        write_json(folder / COMPRESSION, {"schema": SCHEMA, **compression, **layers})
    else:
        (folder / COMPRESSION).unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    half = HALVES.get(mode_of(model) or "")
    if half is not None:
        state = {name: _halved(tensor, half) for name, tensor in state.items()}
    write_whole(folder / WEIGHTS, lambda path: save_file(_unshared(state), path, metadata={"format": "pt"}))
    return folder


def save_tokenizer(folder: Path) -> None:
    """Put the tokenizer of a text model's data beside it, where ``AutoTokenizer.from_pretrained`` finds it."""
    from lighten.data import build_data

    config = read_json(folder / CONFIG, made_by="lighten shrink RUN")
    if len(config["model"]["input_shape"]) == 1:
        data: Any = build_data(config["data"]["name"], **config["data"].get("options", {}))
        data.tokenizer.save_pretrained(folder)


def _of_transformers(model: nn.Module) -> dict[str, Any]:
    """Return the config of a model of ``transformers``, whose ``from_pretrained`` reads it beside our own entries."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string") or not hasattr(model, "save_pretrained"):
        return {}
    return {**json.loads(config.to_json_string()), "architectures": [type(model).__name__]}


@overload
def load(folder: str | Path, *, runtime: Literal["torch"] = "torch") -> nn.Module: ...
@overload
def load(folder: str | Path, *, runtime: Literal["onnxruntime"]) -> Callable[..., Any]: ...
def load(folder: str | Path, *, runtime: str = "torch") -> Any:
    """Return the model of a folder, in eval mode.

    Args:
        folder: as ``save`` wrote it.
        runtime: ``"torch"`` for the module; ``"onnxruntime"`` for a callable from an array (batch, ...) to logits
            (batch, classes), which runs the ``<folder>.onnx`` beside it, or the ``model.onnx`` in it that
            ``push_to_hub`` makes of that.

    Raises:
        UserError: if a file is missing, damaged, or does not fit the others.
    """
    if "://" in str(folder):
        raise UserError(f"{folder} is a URL, expected a model folder; download it and check where it is from")
    folder = Path(folder)
    if runtime == "onnxruntime":
        return _open_onnx(folder)
    if runtime != "torch":
        raise UserError(f"runtime={runtime!r}: expected 'torch' or 'onnxruntime'")
    config, compression = read_json(folder / CONFIG, made_by="lighten shrink RUN"), _compression(folder)
    try:
        model = build(config, compression)
    except Exception as error:  # they may describe anything
        raise UserError(f"{folder / CONFIG}: no model can be built of it ({_reason(error)})") from error
    try:
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError("no such file")
        state = load_file(folder / WEIGHTS)
        restore_masks_(model, state)
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({_reason(error)}); write the folder again") from None
    return model.eval()


def build(config: Mapping[str, Any], compression: Mapping[str, Any]) -> nn.Module:
    """Return the module that ``config.json`` and ``compression.json`` describe, with fresh weights."""
    spec = config["model"]
    if "path" in spec["options"] and spec["name"] == "transformers":
        raise UserError("a model folder holds its own weights, but its options name the path of others")
    shape = tuple(whole(spec["name"], "input_shape", size, most=MAX_SIZE) for size in spec["input_shape"])
    whole(spec["name"], "num_classes", spec["num_classes"], most=MAX_CLASSES)
    model = build_model(spec["name"], num_classes=spec["num_classes"], input_shape=shape, **spec["options"])
    if compression.get("quantization") is not None:
        quantize_as_(model, compression["quantization"], example_of(shape))
    if compression.get("plan") is not None:
        model = cut(model, Plan.from_json(json.dumps(compression["plan"])))
    return model


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
