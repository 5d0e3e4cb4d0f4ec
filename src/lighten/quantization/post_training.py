"""Quantization of a trained model: no training, a little data or none."""

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean
from lighten.quantization.fake_quant import (
    code_limit,
    fake_quantize,
    quantization_parameters,
    rounded,
    weight_scale,
)
from lighten.quantization.insert import calibrate_, check_bits, inputs_of_batch, quantizable, quantize_
from lighten.quantization.layers import become, channel_axis

STATIC, DYNAMIC = "static", "dynamic"
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MODES = (STATIC, DYNAMIC, *HALVES)


def quantize_post_training(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    mode: str = STATIC,
    ranges: str = "mse",
    weight_bits: int = 8,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Return a quantized copy of a trained model, in eval mode; ``model`` is left as it is.

    ``export_onnx`` writes any of them for onnxruntime.

    Args:
        model: float.
        batches: calibration data, a few hundred samples that look like those in use: inputs, ``(inputs, labels)`` or
            dicts. ``"static"`` needs it, the others ignore it.
        mode: ``"static"``: int8 weights and activations, whose ranges are those of ``batches``. ``"dynamic"``: int8
            weights, and activations whose range is measured in each call; for transformers, as convolutions get slower.
            ``"float16"``, ``"bfloat16"``: weights are stored in 16 bits, and computed with in 32.
        ranges: of ``"static"``: how a range is found, a name from ``observe.RULES``.
        weight_bits: 2 to 8, of the two int8 modes.
        exclude: names, patterns or types of layers that stay as they are.

    Raises:
        UserError: on an unknown mode, a setting out of range, or static quantization without data.

    Example:
        >>> small = quantize_post_training(nn.Sequential(nn.Linear(4, 2)), [torch.randn(64, 4)])
        >>> small[0].weight_bits
        8
    """
    if mode not in MODES:
        raise UserError(f"mode={mode!r}: {did_you_mean(mode, MODES)}")
    if hasattr(model, "lighten_quantization"):
        raise UserError(f"{type(model).__name__} is quantized already; give the float model")
    model = copy.deepcopy(model).eval()
    if mode == STATIC:
        if batches is None:
            raise UserError("static quantization needs calibration data; give a few hundred samples as batches")
        given = iter(batches)
        first = next(given, None)
        if first is None:
            raise UserError("calibration needs at least one batch, none was given")
        args, kwargs = inputs_of_batch(first)
        quantize_(model, example_input=kwargs or args, exclude=exclude, weight_bits=weight_bits, ranges=ranges)
        return calibrate_(model, chain([first], given))
    if mode == DYNAMIC:
        return dynamic_(model, exclude=exclude, weight_bits=weight_bits)
    return half_(model, mode, exclude=exclude)


def dynamic_(model: nn.Module, *, exclude: Sequence[str] = (), weight_bits: int = 8) -> nn.Module:
    """Round weights of layers to int8 in place, and let their inputs be quantized by the range of each call.

    Raises:
        UserError: on a setting out of range, or if no layer is left.
    """
    check_bits(weight_bits)
    names, _ = quantizable(model, exclude)
    for name in names:
        layer: Any = model.get_submodule(name)
        axis = channel_axis(layer)
        with torch.no_grad():
            layer.weight.copy_(
                rounded(layer.weight, weight_scale(layer.weight, weight_bits, axis), code_limit(weight_bits), axis)
            )
        if not isinstance(layer, nn.Embedding):
            become(layer, DynamicLayer)
    model.lighten_quantization = {  # type: ignore[assignment]
        "mode": DYNAMIC,
        "exclude": list(exclude),
        "weight_bits": weight_bits,
    }
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
    model.lighten_quantization = {"mode": mode, "exclude": list(exclude)}  # type: ignore[assignment]
    return model


class DynamicLayer:
    """A layer whose input is fake-quantized with the range that it has in this call (ONNX's DynamicQuantizeLinear)."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer on the quantized input; in an exported graph the runtime's operators do that."""
        if not torch.compiler.is_exporting():
            input = fake_quantize(input, *quantization_parameters(float(input.amin()), float(input.amax())))
        return super().forward(input, *args, **kwargs)  # type: ignore[misc]
