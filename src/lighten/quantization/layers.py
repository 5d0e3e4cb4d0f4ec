"""Layers that compute with quantized numbers: thin subclasses that a model's own layers are turned into.

Only the class of a layer changes. Its name, parameters, ``isinstance`` and hooks survive; while fake-quantization is
off it is the layer that it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from lighten.quantization.fake_quant import (
    BIAS_LIMIT,
    code_limit,
    fake_quantize_channels,
    quantize_codes,
    quantized_parameters,
)
from lighten.quantization.fold import fold_batch_norm
from lighten.quantization.functions import SiteMode
from lighten.quantization.sites import ActivationRanges, Quantizer, Stage

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def can_quantize(module: nn.Module) -> bool:
    """Return whether ``module`` is a convolution or linear layer with the forward that it was born with."""
    return any(isinstance(module, layer) and type(module).forward is layer.forward for layer in LAYERS)


class QuantizedLayer:
    """What a convolution or linear layer gains: fake-quantized weight, bias, input and output, batch norm folded.

    Attributes:
        ranges: the model's bank.
        weight_bits: of its weight.
        input_place: index of its input's range.
        quantize_input: quantizes the input, where nothing before has done it.
        quantize_output: quantizes the output, unless a ReLU behind it does.
        norm: the batch norm folded into it; a plain reference, the norm stays where it was.
    """

    ranges: ActivationRanges
    weight_bits: int
    input_place: int
    quantize_input: Quantizer | None
    quantize_output: Quantizer | None
    norm: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer as its bank's stage demands."""
        if self.ranges.stage == Stage.OFF:
            return super().forward(input)  # type: ignore[misc]
        self.ranges.sites.push(None)
        try:
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            output = _compute(self, input, *self.effective_parameters())
            return self.quantize_output(output) if self.quantize_output is not None else output
        finally:
            self.ranges.sites.pop()

    def effective_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch norm folded in, fake-quantized."""
        weight, bias = self.folded_parameters()
        weight_scale, bias_scale = self.scales(weight, bias)
        weight = fake_quantize_channels(weight, weight_scale, code_limit(self.weight_bits))
        if bias is not None and bias_scale is not None:
            bias = fake_quantize_channels(bias, bias_scale, BIAS_LIMIT)
        return weight, bias

    def folded_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch norm folded in, in floating point."""
        if self.norm is None:
            return self.weight, self.bias  # type: ignore[attr-defined]
        return fold_batch_norm(self.weight, self.bias, self.norm)  # type: ignore[attr-defined]

    def scales(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the scales of weight and bias, (out,) each."""
        return quantized_parameters(weight, bias, self.ranges.input_scale(self.input_place), self.weight_bits)


class FoldedNorm:
    """A batch norm that its layer computes, from the first step of fake-quantization on."""

    ranges: ActivationRanges

    def forward(self, input: Tensor) -> Tensor:
        """Pass ``input`` through once folded; normalise it before."""
        return super().forward(input) if self.ranges.stage == Stage.OFF else input  # type: ignore[misc]


class WatchedForward:
    """A module whose forward calls functions (adds, ReLUs, pools) that are quantized where they stand."""

    ranges: ActivationRanges
    watched_name: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, with its calls watched."""
        ranges = self.ranges
        if ranges.stage == Stage.OFF:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        outermost = not ranges.sites
        ranges.sites.push(self.watched_name)
        try:
            if outermost:
                with SiteMode(ranges, ranges.calls):
                    return super().forward(*args, **kwargs)  # type: ignore[misc]
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            ranges.sites.pop()


@dataclass(frozen=True)
class Form:
    """How a converted model writes its numbers down; every form computes the same, bit by bit.

    Attributes:
        signed: activations are int8 instead of uint8; zero points move by 128.
        weight_codes: weights are int8 buffers that are dequantized; else floats that are quantized and dequantized.
        bias_codes: biases are int32 buffers that are dequantized; else floats that lie on the grid of those.
    """

    signed: bool = False
    weight_codes: bool = True
    bias_codes: bool = True


class IntegerLayer:
    """A layer ready for export: codes of weight and bias in buffers, dequantized by operators of the graph."""

    ranges: ActivationRanges
    quantize_input: Quantizer | None
    quantize_output: Quantizer | None

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer on dequantized numbers."""
        self.ranges.sites.push(None)
        try:
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            weight, bias = stored(self, "weight", torch.int8), stored(self, "bias", torch.int32)
            assert weight is not None
            output = _compute(self, input, weight, bias)
            return self.quantize_output(output) if self.quantize_output is not None else output
        finally:
            self.ranges.sites.pop()


def stored(layer: Any, name: str, dtype: torch.dtype) -> Tensor | None:
    """Return an integer layer's ``weight`` or ``bias`` as operators of the graph make it from what is stored."""
    value, scale = getattr(layer, f"stored_{name}"), getattr(layer, f"{name}_scale")
    if value is None or scale is None:
        return value
    info = torch.iinfo(dtype)
    along = (scale, torch.zeros(len(scale), dtype=torch.int64), 0, info.min, info.max, dtype)
    if value.is_floating_point():
        value = torch.ops.quantized_decomposed.quantize_per_channel(value, *along)
    return torch.ops.quantized_decomposed.dequantize_per_channel(value, *along)


def become(module: nn.Module, mixin: Any) -> None:
    """Turn ``module`` into an instance of ``mixin`` and its own class, in place; its class keeps its name."""
    base: Any = type(module)
    module.__class__ = _mixed(mixin, base)


def to_integers_(layer: Any, form: Form) -> None:
    """Replace a quantized layer's parameters by what an integer runtime stores, in place."""
    with torch.no_grad():
        weight, bias = layer.folded_parameters()
        weight_scale, bias_scale = layer.scales(weight, bias)
        if form.weight_codes:
            weight = quantize_codes(weight, weight_scale, code_limit(layer.weight_bits)).to(torch.int8)
        else:
            weight = fake_quantize_channels(weight, weight_scale, code_limit(layer.weight_bits))
        if bias_scale is not None and form.bias_codes:
            bias = quantize_codes(bias, bias_scale, BIAS_LIMIT).to(torch.int32)
        elif bias_scale is not None:
            bias, bias_scale = fake_quantize_channels(bias, bias_scale, BIAS_LIMIT), None
    layer.weight = layer.bias = None
    layer.__class__ = _mixed(IntegerLayer, type(layer).__mro__[2])
    values = {"stored_weight": weight, "weight_scale": weight_scale, "stored_bias": bias, "bias_scale": bias_scale}
    for name, value in values.items():
        layer.register_buffer(name, value.detach() if value is not None else None)


def _compute(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


@cache
def _mixed(mixin: Any, base: Any) -> Any:
    forward: Callable[..., Any] = mixin.forward
    mixed: Any = type(base.__name__, (mixin, base), {"__module__": base.__module__, "__doc__": base.__doc__})

    @wraps(base.forward)
    def with_signature(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    mixed.forward = with_signature
    return mixed
