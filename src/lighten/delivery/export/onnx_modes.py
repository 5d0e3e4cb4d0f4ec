"""Post-training modes in an ONNX graph: int8 with ranges taken in each call, and weights stored in 16 bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lighten.quantization.fake_quant import code_limit, quantize_codes, weight_scale
from lighten.quantization.integer_layers import embedding_to_integers_
from lighten.quantization.layer_kinds import CONVOLUTIONS, TRANSPOSED, channel_axis
from lighten.quantization.post_training import dynamic_layers
from lighten.quantization.swap_class import Mixed, restore_class_, swap_class_


def dynamic_integers_(model: nn.Module) -> None:
    """Replace layers of mode ``"dynamic"`` by what an ONNX file computes, in place; their codes are those of training.

    The result is there to be traced: outside of a graph, operators of ONNX compute nothing.
    """
    for module, bits in dynamic_layers(model):
        if isinstance(module, nn.Embedding):
            embedding_to_integers_(module, bits)
            continue
        layer: Any = module
        axis = channel_axis(layer)
        scale = weight_scale(layer.weight, bits, axis)
        codes = quantize_codes(layer.weight.detach(), scale, code_limit(bits), axis).to(torch.int8)
        if isinstance(layer, nn.Linear):
            codes = codes.t().contiguous()
        restore_class_(layer)
        if isinstance(layer, TRANSPOSED):
            swap_class_(layer, _DynamicInput)
            continue
        swap_class_(layer, _DynamicConvolution if isinstance(layer, CONVOLUTIONS) else _DynamicProduct)
        layer.register_buffer("codes", codes)
        layer.register_buffer("weight_scale", scale)


def store_halves(proto: Any, weights: Mapping[str, str]) -> None:
    """Store weights of a float graph in 16 bits, and cast them to float32 in it.

    Args:
        proto: an ONNX model, changed in place; onnxruntime casts once, as it loads the file.
        weights: names, and ``"float16"`` or ``"bfloat16"``. A weight that the graph holds transposed has another name
            there: it is known by losing nothing.
    """
    if not weights:
        return
    import ml_dtypes
    import onnx

    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        halves = {kind: values.astype(types[kind]) for kind in sorted(set(weights.values()))}
        same = [kind for kind, half in halves.items() if np.array_equal(half.astype(np.float32), values)]
        dtype = weights.get(name) or next(iter(same), None)
        if dtype is None:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(halves[dtype], f"{name}.{dtype}"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.{dtype}"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        proto.graph.node.insert(0, cast)


def unpack_weights(proto: Any) -> None:
    """Let the weights of a graph that computes in float be int8 codes that a runtime unpacks as it loads the file.

    onnxruntime leaves ``DequantizeLinear`` to each call, and multiplies what it gives more slowly than a constant; a
    cast and a product of constants it computes once.

    Args:
        proto: an ONNX model whose activations are not quantized, changed in place.
    """
    from onnx import TensorProto, helper, numpy_helper

    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for at, node in reversed(list(enumerate(proto.graph.node))):
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        codes, output = stored[node.input[0]], node.output[0]
        scale = numpy_helper.to_array(stored[node.input[1]])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        along = [1] * len(codes.dims)
        if scale.ndim:
            along[axis] = -1
        names = f"{output}.codes", f"{output}.scale"
        proto.graph.initializer.append(numpy_helper.from_array(scale.reshape(along), names[1]))
        cast = helper.make_node("Cast", [codes.name], [names[0]], to=TensorProto.FLOAT)
        product = helper.make_node("Mul", names, [output])
        del proto.graph.node[at]
        for new in (product, cast):
            proto.graph.node.insert(at, new)
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)


class _DynamicProduct(Mixed):
    """A linear layer whose input gets its codes in each call, and is multiplied in integers."""

    codes: Tensor
    weight_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        codes, scale, zero_point = _in_codes(input)
        shape = [*input.shape[:-1], self.codes.shape[1]]
        sums = torch.onnx.ops.symbolic("MatMulInteger", [codes, self.codes, zero_point], dtype=torch.int32, shape=shape)
        return _in_units(self, sums, scale * self.weight_scale)


class _DynamicConvolution(Mixed):
    """A convolution whose input gets its codes in each call, and is multiplied in integers."""

    codes: Tensor
    weight_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        layer: Any = self
        around, spatial = list(layer._reversed_padding_repeated_twice), len(layer.kernel_size)
        if layer.padding_mode != "zeros":
            input = nn.functional.pad(input, around, mode=layer.padding_mode)
            around = [0] * len(around)
        before, after = around[-2::-2], around[::-2]
        sizes = zip(input.shape[2:], before, after, layer.kernel_size, layer.stride, layer.dilation, strict=True)
        shape = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, k, s, d in sizes]
        codes, scale, zero_point = _in_codes(input)
        sums = torch.onnx.ops.symbolic(
            "ConvInteger",
            [codes, self.codes, zero_point],
            {
                "kernel_shape": list(layer.kernel_size),
                "strides": list(layer.stride),
                "dilations": list(layer.dilation),
                "group": layer.groups,
                "pads": [*before, *after],
            },
            dtype=torch.int32,
            shape=[input.shape[0], layer.out_channels, *shape],
        )
        along = [-1, *[1] * spatial]
        return _in_units(self, sums, scale * self.weight_scale.view(along), along)


class _DynamicInput(Mixed):
    """A transposed convolution, which runtimes compute in float, on an input that is rounded to codes in each call."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        numbers = torch.onnx.ops.symbolic(
            "DequantizeLinear", _in_codes(input), dtype=torch.float32, shape=list(input.shape)
        )
        return super().forward(numbers, *args, **kwargs)  # type: ignore[misc]


def _in_codes(x: Tensor) -> list[Tensor]:
    """Return codes of ``x`` over its own range, their scale and zero point."""
    return list(
        torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear",
            [x],
            dtypes=[torch.uint8, torch.float32, torch.uint8],
            shapes=[list(x.shape), [], []],
        )
    )


def _in_units(layer: Any, sums: Tensor, unit: Tensor, along: list[int] | None = None) -> Tensor:
    numbers = sums.float() * unit
    if layer.bias is None:
        return numbers
    return numbers + (layer.bias if along is None else layer.bias.view(along))
