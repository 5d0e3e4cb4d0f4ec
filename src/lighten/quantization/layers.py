"""Layers that compute with quantized numbers: thin subclasses that a model's own layers are turned into.

Only the class of a layer changes. Its name, parameters, ``isinstance`` and hooks survive; while fake-quantization is
off it is the layer that it was. A model that was compiled in place runs compiled until then and uncompiled from there
on: ranges that move with every step would be new constants in a graph each time.
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
    weight_scale,
)
from lighten.quantization.fold import fold_batch_norm
from lighten.quantization.functions import SiteMode
from lighten.quantization.parameters import effective_parameters
from lighten.quantization.sites import ActivationRanges, Quantizer, Stage

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)
INT8 = "Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear, Embedding and the Conv1D of transformers"


def can_quantize(module: nn.Module) -> bool:
    """Return whether ``module`` is a layer that has an int8 form, with the forward that it was born with."""
    if is_conv1d(module):
        return True
    return any(isinstance(module, layer) and type(module).forward is layer.forward for layer in LAYERS)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether ``module`` is the linear layer of GPT-2 in ``transformers``, which has its weight transposed."""
    kind: Any = type(module)
    return _is_conv1d(kind)


@cache
def _is_conv1d(layer: Any) -> bool:
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in layer.__mro__)


def channel_axis(module: nn.Module) -> int:
    """Return which dimension of a layer's weight its output channels are in; of an embedding, its rows."""
    return 1 if isinstance(module, TRANSPOSED) or is_conv1d(module) else 0


class QuantizedLayer:
    """What a convolution or linear layer gains: fake-quantized weight, bias, input and output; norm and ReLU in it.

    Attributes:
        ranges: the model's bank.
        weight_bits: of its weight.
        input_place: index of its input's range.
        quantize_input: quantizes the input, where nothing before has done it.
        quantize_output: quantizes the output, unless something behind it does.
        norm: the batch norm folded into it; a plain reference, the norm stays where it was.
        norm_name: where that is, seen from the model's root.
        relu: once fake-quantization is on, it computes the ReLU behind it as well.
    """

    ranges: ActivationRanges
    weight_bits: int
    input_place: int
    quantize_input: Quantizer | None
    quantize_output: Quantizer | None
    norm: nn.Module | None
    norm_name: str | None
    relu: bool

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer as its bank's stage demands."""
        if self.ranges.stage == Stage.OFF:
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(QuantizedLayer._quantized)(self, input, *args, **kwargs)
        return self._quantized(input, *args, **kwargs)

    def _quantized(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch._C.DisableTorchFunction():  # what is called in here is no call of the user's forward
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            output = _compute(self, input, *self.effective_parameters(), *args, **kwargs)
            if self.quantize_output is None or (self.relu and self.ranges.stage != Stage.ON):
                return output
            return self.quantize_output.finish_(output, relu=self.relu)

    def effective_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch norm folded in, fake-quantized."""
        layer: Any = self
        if self.ranges.only is not None and layer not in self.ranges.only.layers:
            return self.folded_parameters()
        return effective_parameters(
            layer.weight,
            layer.bias,
            self.norm,
            self.ranges.input_scale(self.input_place),
            bits=self.weight_bits,
            axis=channel_axis(layer),
            groups=_groups(layer),
        )

    def folded_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch norm folded in, in floating point."""
        layer: Any = self
        if self.norm is None:
            return layer.weight, layer.bias
        return fold_batch_norm(layer.weight, layer.bias, self.norm, axis=channel_axis(layer), groups=_groups(layer))

    def scales(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the scales of weight and bias; groups of a transposed convolution share those of the weight."""
        layer: Any = self
        input_scale = self.ranges.input_scale(self.input_place)
        return quantized_parameters(weight, bias, input_scale, self.weight_bits, channel_axis(layer))


class QuantizedEmbedding:
    """What an embedding gains: rows of int8 numbers, each with a scale of its own."""

    ranges: ActivationRanges
    weight_bits: int

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, (...) to (..., dimension), and fake-quantize those."""
        rows = super().forward(input)  # type: ignore[misc]
        table: Any = self
        only = self.ranges.only
        if self.ranges.stage == Stage.OFF or (only is not None and table not in only.layers):
            return rows
        flat = rows.flatten(0, -2)
        limit = code_limit(self.weight_bits)
        return fake_quantize_channels(flat, weight_scale(flat, self.weight_bits), limit).view_as(rows)


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
        if self.ranges.stage == Stage.OFF:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(WatchedForward._watched)(self, *args, **kwargs)
        return self._watched(*args, **kwargs)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        ranges = self.ranges
        outermost = not ranges.sites
        ranges.sites.push(self.watched_name)
        try:
            if outermost:
                with SiteMode(ranges, ranges.calls):
                    return super().forward(*args, **kwargs)  # type: ignore[misc]
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            ranges.sites.pop()
            if outermost:
                ranges.shared.clear()


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
    relu: bool

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer on dequantized numbers."""
        self.ranges.sites.push(None)
        try:
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            weight, bias = stored(self, "weight", torch.int8), stored(self, "bias", torch.int32)
            assert weight is not None
            output = _compute(self, input, weight, bias, *args, **kwargs)
            if self.quantize_output is None or self.relu:
                return output
            return self.quantize_output(output)
        finally:
            self.ranges.sites.pop()


class IntegerEmbedding:
    """An embedding ready for export: rows of int8 codes, and a scale for each; what is looked up is dequantized."""

    stored_weight: Tensor
    weight_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, (...) to (..., dimension)."""
        return self.stored_weight[input].to(self.weight_scale.dtype) * self.weight_scale[input].unsqueeze(-1)


def stored(layer: Any, name: str, dtype: torch.dtype) -> Tensor | None:
    """Return an integer layer's ``weight`` or ``bias`` as operators of the graph make it from what is stored."""
    value, scale = getattr(layer, f"stored_{name}"), getattr(layer, f"{name}_scale")
    if value is None or scale is None:
        return value
    info, axis = torch.iinfo(dtype), channel_axis(layer) if name == "weight" else 0
    zeros = torch.zeros(len(scale), dtype=torch.int64, device=scale.device)
    along = (scale, zeros, axis, info.min, info.max, dtype)
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
        if isinstance(layer, QuantizedEmbedding):
            embedding_to_integers_(layer, layer.weight_bits)
            return
        weight, bias = layer.folded_parameters()
        scale, bias_scale = layer.scales(weight, bias)
        limit, axis = code_limit(layer.weight_bits), channel_axis(layer)
        if form.weight_codes:
            weight = quantize_codes(weight, scale, limit, axis).to(torch.int8)
        else:
            weight = fake_quantize_channels(weight, scale, limit, axis)
        if bias_scale is not None and form.bias_codes:
            bias = quantize_codes(bias, bias_scale, BIAS_LIMIT).to(torch.int32)
        elif bias_scale is not None:
            bias, bias_scale = fake_quantize_channels(bias, bias_scale, BIAS_LIMIT), None
        _store(layer, IntegerLayer, weight, scale, bias, bias_scale)


def embedding_to_integers_(table: Any, bits: int) -> None:
    """Replace an embedding's rows by codes and a scale each, in place."""
    scale = weight_scale(table.weight, bits)
    _store(table, IntegerEmbedding, quantize_codes(table.weight, scale, code_limit(bits)).to(torch.int8), scale)


def _store(
    layer: Any, mixin: Any, weight: Tensor, scale: Tensor, bias: Tensor | None = None, bias_scale: Tensor | None = None
) -> None:
    dtype = layer.weight.dtype
    del layer.weight
    layer.weight, layer.bias = torch.empty(0, dtype=dtype), None  # some forwards ask for the weight's dtype
    quantized = isinstance(layer, QuantizedLayer | QuantizedEmbedding)
    layer.__class__ = _mixed(mixin, type(layer).__mro__[2] if quantized else type(layer))
    values = {"stored_weight": weight, "weight_scale": scale, "stored_bias": bias, "bias_scale": bias_scale}
    for name, value in values.items():
        layer.register_buffer(name, value.detach() if value is not None else None)


def _compute(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
    if isinstance(layer, nn.Linear) or is_conv1d(layer):
        weight = weight.t() if is_conv1d(layer) else weight
        if x.dim() == 2 or not isinstance(layer, IntegerLayer):
            return nn.functional.linear(x, weight, bias)
        # a matrix product that runtimes compute in integers, bias included
        return nn.functional.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    if isinstance(layer, CONVOLUTIONS):
        return layer._conv_forward(x, weight, bias)
    return _transposed(layer, x, weight, bias, *args, **kwargs)


def _groups(layer: Any) -> int:
    """Return in how many groups the output channels of a weight repeat."""
    return layer.groups if isinstance(layer, TRANSPOSED) else 1


def _transposed(
    layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None
) -> Tensor:
    spatial = len(layer.kernel_size)
    padding = layer._output_padding(
        x, output_size, layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation
    )
    convolve = getattr(nn.functional, f"conv_transpose{spatial}d")
    return convolve(x, weight, bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation)


_uncompiled = torch.compiler.disable
"""Wraps what a compiler must call and not look into; outside of one that would only cost time."""


@cache
def _mixed(mixin: Any, base: Any) -> Any:
    forward: Callable[..., Any] = mixin.forward
    mixed: Any = type(base.__name__, (mixin, base), {"__module__": base.__module__, "__doc__": base.__doc__})

    @wraps(base.forward)
    def with_signature(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    mixed.forward = with_signature
    return mixed
