"""Post-training quantization."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import Stage
from lighten.quantization.calibrate import calibrate_, inputs_of_batch
from lighten.quantization.fake_quant import (
    code_limit,
    fake_quantize,
    quantization_parameters,
    rounded,
    weight_scale,
)
from lighten.quantization.insert import quantize_
from lighten.quantization.layer_kinds import CONVOLUTIONS, TRANSPOSED, channel_axis
from lighten.quantization.layers import FUSED, PlainPath, QuantizedEmbedding, QuantizedLayer
from lighten.quantization.select import matched_modules, quantizable
from lighten.quantization.settings import (
    DYNAMIC,
    HALF_MODES,
    POST_TRAINING_MODES,
    POST_TRAINING_RANGES,
    STATIC,
    TRAIN,
    QuantizeSettings,
    check_bits,
)  # fmt: skip
from lighten.quantization.swap_class import Mixed, swap_class_
from lighten.quantization.weights_alone import mark_
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.checks import check_one_of
from lighten.utils.clone import clone, fix_weights_
from lighten.utils.compression import record_, record_of
from lighten.utils.inputs import ExampleInput

HALVES = {name: getattr(torch, name) for name in HALF_MODES}
SLOW = (
    "dynamic quantization of {count} convolution(s): onnxruntime computes them slower than in float32 "
    "(a ResNet-20 at 0.2 of its speed); static quantization makes them faster"
)


def quantize_post_training(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    mode: str = STATIC,
    ranges: str = POST_TRAINING_RANGES,
    weight_bits: int = QuantizeSettings.weight_bits,
    exclude: Sequence[str] = (),
    batch: Roles | None = None,
) -> nn.Module:
    """Return a quantized copy of a trained model, in eval mode; ``model`` is not changed.

    ``export_onnx`` writes all modes for onnxruntime.

    Args:
        model: float.
        batches: calibration data, a few hundred typical samples: inputs, ``(inputs, labels)`` or
            dicts. ``"static"`` needs them, the other modes ignore them.
        mode: ``"static"``: int8 weights and activations, with ranges from ``batches``. ``"dynamic"``: int8
            weights, and activations whose range is measured in each call; for transformers, as convolutions get slower.
            ``"float16"``, ``"bfloat16"``: weights are stored in 16 bits; computation is in 32 bits.
        ranges: for ``"static"``: how a range is found, a name from ``observe.RULES``.
        weight_bits: 2 to 8, for the two int8 modes.
        exclude: names, patterns or types of layers that are not quantized.
        batch: roles of the parts of other batches, as in ``calibrate_``.

    Raises:
        UserError: on an unknown mode, a setting out of range, or static quantization without data.

    Example:
        >>> small = quantize_post_training(nn.Sequential(nn.Linear(4, 2)), [torch.randn(64, 4)])
        >>> small[0].weight_bits
        8
    """
    check_one_of("mode", mode, POST_TRAINING_MODES)
    if modes_of(model) or record_of(model).quantization is not None:
        raise UserError(f"{type(model).__name__} is quantized already; give the float model")
    if mode not in HALVES and any(p.dtype == torch.float16 for p in model.parameters()):
        raise UserError(
            f"{type(model).__name__} computes in float16, too coarse for scales of int8; give it and its calibration "
            "data in float32 (model.float())"
        )
    model = clone(model).eval()
    fix_weights_(model)
    if mode == STATIC:
        if batches is None:
            raise UserError("static quantization needs calibration data; give a few hundred samples as batches")
        given = iter(batches)
        first = next(given, None)
        if first is None:
            raise UserError("calibration needs at least one batch, none was given")
        args, kwargs = inputs_of_batch(first, BatchFormat(batch), model)
        quantize_(model, example_input=kwargs or args, exclude=exclude, weight_bits=weight_bits, ranges=ranges)
        calibrate_(model, chain([first], given), batch=batch)
        record_(model, quantization={**record_of(model).quantization, "mode": STATIC})
        return model
    if mode == DYNAMIC:
        return dynamic_(model, exclude=exclude, weight_bits=weight_bits)
    return half_(model, mode, exclude=exclude)


def dynamic_(
    model: nn.Module, *, exclude: Sequence[str] = (), weight_bits: int = QuantizeSettings.weight_bits
) -> nn.Module:
    """Round weights of layers to int8 in place, and let their inputs be quantized by the range of each call.

    Raises:
        UserError: on a setting out of range, or if no layer is left.
    """
    check_bits(weight_bits)
    names, _ = quantizable(model, exclude)
    convolutions = [name for name in names if isinstance(model.get_submodule(name), CONVOLUTIONS + TRANSPOSED)]
    if convolutions:
        warnings.warn(SLOW.format(count=len(convolutions)), stacklevel=2)
    for name in names:
        layer: Any = model.get_submodule(name)
        axis = channel_axis(layer)
        with torch.no_grad():
            layer.weight.copy_(
                rounded(layer.weight, weight_scale(layer.weight, weight_bits, axis), code_limit(weight_bits), axis)
            )
        if not isinstance(layer, nn.Embedding):
            swap_class_(layer, DynamicLayer)
    for module in list(model.modules()):
        if isinstance(module, FUSED):
            swap_class_(module, PlainPath)
    record_(model, quantization={"mode": DYNAMIC, "exclude": list(exclude), "weight_bits": weight_bits})
    return model


def half_(model: nn.Module, mode: str, *, exclude: Sequence[str] = ()) -> nn.Module:
    """Round weights (parameters of two dimensions or more) to 16 bits in place; they stay float32 tensors.

    Raises:
        UserError: if a weight is too large for float16.
    """
    left = quantizable(model, exclude)[1] if exclude else {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.rpartition(".")[0] in left:
            continue
        half = parameter.detach().to(HALVES[mode])
        if not half.isfinite().all():
            raise UserError(f"{name} holds numbers beyond {mode}'s largest; use bfloat16, or leave it out by exclude")
        with torch.no_grad():
            parameter.copy_(half)
    record_(model, quantization={"mode": mode, "exclude": list(exclude)})
    return model


def mode_of(model: nn.Module) -> str | None:
    """Return how ``model`` is quantized: ``"train"`` where fake-quantizers are in it, a mode, or ``None``."""
    settings = record_of(model).quantization
    return None if settings is None else settings.get("mode", TRAIN)


def quantize_as_(model: nn.Module, settings: Mapping[str, Any], example_input: ExampleInput) -> nn.Module:
    """Make a fresh model, in place, one that takes the state of the quantized model whose ``settings`` these are.

    Args:
        model: float, with any weights.
        settings: of the quantized model, from its record.
        example_input: as of ``quantize_``.
    """
    mode, exclude = settings.get("mode", TRAIN), settings["exclude"]
    if mode != TRAIN:
        fix_weights_(model)
    if mode in HALVES:
        half_(model, mode, exclude=exclude)
    elif mode == DYNAMIC:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamic_(model, exclude=exclude, weight_bits=settings["weight_bits"])
    else:
        wanted = {key: settings[key] for key in ("exclude", "weight_bits", "ranges")}
        quantize_(model, example_input=example_input, **wanted)
        mark_(model, settings)
    record_(model, quantization=dict(settings))
    return model


def modes_of(model: nn.Module) -> set[str]:
    """Return how ``model`` and its parts are quantized; also of a part of a model that is fake-quantized as a whole."""
    modes = {mode for _, _, mode in _quantized_parts(model)}
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer | QuantizedEmbedding)]
    inside = any(layer.activation_quantizers.stage != Stage.OFF for layer in layers)
    return modes | {TRAIN} if inside and not modes & {TRAIN, STATIC} else modes


def rounded_weights(model: nn.Module) -> dict[str, str]:
    """Return the weights that are stored in 16 bits, by name, with their type."""
    found = {}
    for name, part, mode in _quantized_parts(model):
        left = _left(part)
        for weight, parameter in part.named_parameters():
            if mode in HALVES and parameter.dim() > 1 and weight.rpartition(".")[0] not in left:
                found[f"{name}.{weight}".lstrip(".")] = mode
    return found


def dynamic_layers(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Return the layers and embeddings of dynamic parts that are in int8, and in how many bits."""
    found = []
    for _, part, mode in _quantized_parts(model):
        if mode == DYNAMIC:
            bits, left = int(record_of(part).quantization["weight_bits"]), _left(part)
            found += [
                (module, bits)
                for name, module in part.named_modules()
                if isinstance(module, DynamicLayer)
                or (type(module).forward is nn.Embedding.forward and name not in left)
            ]
    return found


def _quantized_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield name, module and mode of what was quantized in ``model``: itself, or parts of it."""
    for name, module in model.named_modules():
        mode = mode_of(module)
        if mode is not None:
            yield name, module, mode


def _left(model: nn.Module) -> set[str]:
    return {name for pattern in record_of(model).quantization["exclude"] for name in matched_modules(model, pattern)}


class DynamicLayer(Mixed):
    """A layer whose input is fake-quantized with the range that it has in this call (ONNX's DynamicQuantizeLinear)."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer on the quantized input."""
        input = fake_quantize(input, *quantization_parameters(*_extremes(input)))
        return super().forward(input, *args, **kwargs)  # type: ignore[misc]


def _extremes(x: Tensor) -> tuple[float, float]:
    x = x.detach()
    return float(x.amin()), float(x.amax())
