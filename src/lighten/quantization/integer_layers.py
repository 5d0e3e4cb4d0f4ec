"""Integer layers, and the conversion of a quantized model to them."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage, quantizers_in
from lighten.quantization.fake_quant import (
    BIAS_LIMIT,
    code_limit,
    fake_quantize_channels,
    quantize_codes,
    weight_scale,
)
from lighten.quantization.install import refold_norms_
from lighten.quantization.layer_kinds import channel_axis, compute, is_linear
from lighten.quantization.layers import LayerQuantizers, QuantizedEmbedding, QuantizedLayer
from lighten.quantization.swap_class import Mixed, born_as, mixed_class
from lighten.utils.clone import clone


@dataclass(frozen=True)
class QdqFormat:
    """How a converted model writes its numbers down; every format computes the same, bit by bit.

    Attributes:
        signed: activations are int8 instead of uint8; zero points move by 128.
        weight_codes: weights are int8 buffers that are dequantized; else floats that are quantized and dequantized.
        bias_codes: biases are int32 buffers that are dequantized; else floats that lie on the grid of those.
    """

    signed: bool = False
    weight_codes: bool = True
    bias_codes: bool = True


ONNX_FORMAT = QdqFormat()
"""What ONNX has: unsigned activations, codes of weights and biases."""


def convert(model: nn.Module, form: QdqFormat = ONNX_FORMAT) -> nn.Module:
    """Return a copy in eval mode that holds integers and says so: what is exported.

    Batch norm is gone, weights are int8 and biases int32 buffers, and every quantizer is a pair of
    ``quantized_decomposed`` operators. It computes bit by bit what the fake-quantized model computes.

    Args:
        model: calibrated, or trained with ``Quantize``.
        form: how its numbers are written down; exporters differ in what they understand.

    Raises:
        UserError: if the ranges are not known yet.
    """
    found = quantizers_in(model)
    if not found:
        raise UserError(f"{type(model).__name__} has no fake-quantizers; call quantize_ on it first")
    if any(quantizers.stage != Stage.ON for quantizers in found):
        raise UserError("the model's fake-quantizers are off; calibrate_ it or train it with Quantize before export")
    if any(q.names and len(q.unknown()) == len(q.names) and not q.weights_alone for q in found):
        raise UserError("no activation has a range yet; run data through the model before export")
    import_module("torch.ao.quantization.fx._decomposed")  # registers the operators, which an exporter must find

    converted = clone(model).eval()
    refold_norms_(converted)
    for module in list(converted.modules()):
        if isinstance(module, QuantizedEmbedding):
            to_integers_(module, form)
        elif isinstance(module, QuantizedLayer):
            to_integers_(module, form)
            norm, module.quantizers.norm, module.quantizers.norm_name = module.quantizers.norm, None, None
            if norm is not None:
                _replace(converted, norm, nn.Identity().eval())
    for quantizers in quantizers_in(converted):
        quantizers.stage, quantizers.signed = Stage.EXPORT, form.signed
    return converted


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


class IntegerLayer(Mixed):
    """A layer ready for export: codes of weight and bias in buffers, dequantized by operators of the graph."""

    activation_quantizers: ActivationQuantizers
    quantizers: LayerQuantizers

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer on dequantized numbers."""
        layer, own = cast(Any, self), self.quantizers
        self.activation_quantizers.calls.push(None)
        try:
            if own.input is not None:
                input = own.input(input)
            weight, bias = stored(self, "weight", torch.int8), stored(self, "bias", torch.int32)
            assert weight is not None
            if is_linear(layer) and input.dim() > 2:  # as a matrix product, which runtimes compute in integers
                output = compute(layer, input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])
            else:
                output = compute(layer, input, weight, bias, *args, **kwargs)
            if own.output is not None and not own.relu:
                output = own.output(output)
        finally:
            self.activation_quantizers.calls.pop()
        self.activation_quantizers.calls.enter(output, own.name)
        return output

    @property
    def weight(self) -> Tensor:
        """The weight as numbers, for whoever reads it past the layer."""
        weight = stored(self, "weight", torch.int8)
        assert weight is not None
        return weight


class IntegerEmbedding(Mixed):
    """An embedding ready for export: rows of int8 codes, and a scale for each; what is looked up is dequantized."""

    stored_weight: Tensor
    weight_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, (...) to (..., dimension)."""
        return self.stored_weight[input].to(self.weight_scale.dtype) * self.weight_scale[input].unsqueeze(-1)

    @property
    def weight(self) -> Tensor:
        """The rows as numbers, for whoever reads them past the layer."""
        return self.stored_weight.to(self.weight_scale.dtype) * self.weight_scale.unsqueeze(-1)


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


def to_integers_(layer: Any, form: QdqFormat) -> None:
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
    del layer.weight
    layer.bias = None
    layer.__class__ = mixed_class(mixin, born_as(layer))
    values = {"stored_weight": weight, "weight_scale": scale, "stored_bias": bias, "bias_scale": bias_scale}
    for name, value in values.items():
        layer.register_buffer(name, value.detach() if value is not None else None)
