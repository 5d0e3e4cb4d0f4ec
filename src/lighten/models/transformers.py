"""Any image classifier of the ``transformers`` library, fresh from a config or with a folder's weights."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from lighten.errors import UserError, did_you_mean
from lighten.models.registry import register_model


@register_model("transformers")
def transformers(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an image classifier of ``transformers``; its output carries ``.logits``.

    No code and no pickled weights are ever taken from ``path``.

    Args:
        num_classes: becomes the config's ``num_labels``; a head of another size is replaced by a fresh one.
        input_shape: (channels, height, width); sets the config's ``num_channels`` and ``image_size``,
            and must agree with those of ``path``.
        path: a folder written by ``save_pretrained``, or a name on the hub.
        config: a mapping with ``model_type`` and whatever else differs from that type's defaults.

    Raises:
        UserError: if not exactly one of ``path`` and ``config`` is given, or it cannot be read or built.
    """
    if (path is None) == (config is None):
        raise UserError("model transformers: give either path or config, such as config={model_type: resnet}")
    shape = (num_classes, input_shape)
    model: Any = _load(path, *shape) if path else _fresh(dict(config or {}), *shape)
    model.lighten_options = {"config": json.loads(model.config.to_json_string())}
    return model


def _fresh(options: dict[str, Any], num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    model_type = str(options.pop("model_type", None))
    kinds = {kind.model_type for kind in AutoModelForImageClassification._model_mapping}
    if model_type not in kinds:
        raise UserError(f"model transformers: config.model_type={model_type!r}; {did_you_mean(model_type, kinds)}")
    for key in ("id2label", "label2id", "architectures", "transformers_version"):
        options.pop(key, None)
    try:
        config = AutoConfig.for_model(model_type, **options, num_labels=num_classes)
        for key, value in _shape_keys(input_shape).items():
            if hasattr(config, key):
                setattr(config, key, value)
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False).float()
    except Exception as error:
        raise UserError(f"model transformers: config of {model_type!r} cannot be built ({_line(error)})") from error


def _load(path: str, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    if "://" in path:
        raise UserError(f"model transformers: path={path!r} is a URL, expected a folder or a name on the hub")
    try:
        config = AutoConfig.from_pretrained(path, num_labels=num_classes, trust_remote_code=False)
        for key, value in _shape_keys(input_shape).items():
            if getattr(config, key, value) not in (value, list(input_shape[1:]), None):
                made = f"{path} was made for {key}={getattr(config, key)}"
                raise UserError(f"model transformers: {made}, the data has {value}")
        return AutoModelForImageClassification.from_pretrained(
            path, config=config, ignore_mismatched_sizes=True, use_safetensors=True, trust_remote_code=False
        ).float()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model transformers: path={path!r} cannot be loaded; expected a folder with config.json and "
            f"model.safetensors, or a name on the hub and a network ({_line(error)})"
        ) from error


def _shape_keys(input_shape: tuple[int, int, int]) -> dict[str, Any]:
    channels, height, width = input_shape
    return {"num_channels": channels, "image_size": height if height == width else (height, width)}


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
