"""Layers that compute with quantized numbers: thin subclasses that a model's own layers are turned into.

Only the class of a layer changes. Its name, parameters, ``isinstance`` and hooks survive; while fake-quantization is
off it is the layer that it was. A model that was compiled in place runs compiled until then and uncompiled from there
on: ranges that move with every step would be new constants in a graph each time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage
from lighten.quantization.calls import forward_code
from lighten.quantization.fake_quant import (
    BIAS_LIMIT,
    code_limit,
    fake_quantize_channels,
    quantize_codes,
    quantized_parameters,
    weight_scale,
)
from lighten.quantization.fold import fold_batch_norm
from lighten.quantization.functions import FunctionMode
from lighten.quantization.parameters import effective_parameters
from lighten.quantization.quantizer import Quantizer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)
INT8 = "Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear, Embedding and the Conv1D of transformers"


def can_quantize(module: nn.Module) -> bool:
    """Return whether ``module`` is a layer that has an int8 form, and is nothing but that layer."""
    return _is_layer(module) and why_not(module) is None


def why_not(module: nn.Module) -> str | None:
    """Return why a layer stays in floating point though its kind has an int8 form, or ``None``."""
    if not _is_layer(module):
        return "its class has a forward of its own" if isinstance(module, LAYERS) else None
    if module._parameters.get("weight") is None:
        return (
            "its weight is computed from others (weight_norm, spectral_norm, a pruning mask, …); take that off with "
            "torch.nn.utils.parametrize.remove_parametrizations, or prune.remove"
        )
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _is_layer(module: nn.Module) -> bool:
    if is_conv1d(module):
        return True
    kind = type(module)
    born = any(isinstance(module, layer) and kind.forward is layer.forward for layer in LAYERS)
    return born and kind.__call__ is nn.Module.__call__


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


class Mixed:
    """What a module's own class is mixed with; modules of such a class are copied and pickled as that mixture."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        mixins, kind = [], type(self)
        while "mixture" in kind.__dict__:
            mixin, kind = kind.__dict__["mixture"]
            mixins.append(mixin)
        return (_restored, (tuple(mixins), kind), self.__dict__) if mixins else super().__reduce_ex__(protocol)


def born_as(module: Any) -> Any:
    """Return the class that a module had before anything was mixed in."""
    return next(c for c in type(module).__mro__ if issubclass(c, nn.Module) and not issubclass(c, Mixed))


class QuantizedLayer(Mixed):
    """What a convolution or linear layer gains: fake-quantized weight, bias, input and output; norm and ReLU in it.

    Where somebody looks at what the layer, its norm or its ReLU computes (by a hook), or estimates the norm's
    statistics, each computes its own part: the same numbers, except for the rounding of the bias.

    Attributes:
        quantizers: those of the model.
        layer_name: its name, seen from the root of that model.
        weight_bits: of its weight.
        input_location: index of its input's range.
        quantize_input: quantizes the input, where nothing before has done it.
        quantize_output: quantizes the output, unless something behind it does.
        norm: the batch norm folded into it; a plain reference, the norm stays where it was.
        norm_name: where that is, seen from the model's root.
        relu: once fake-quantization is on, it computes the ReLU behind it as well.
        relu_module: what computes that ReLU otherwise, where a module does; a plain reference.
    """

    quantizers: ActivationQuantizers
    layer_name: str
    weight_bits: int
    input_location: int
    quantize_input: Quantizer | None
    quantize_output: Quantizer | None
    norm: nn.Module | None
    norm_name: str | None
    relu: bool
    relu_module: nn.Module | None

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer as the stage demands."""
        if self.quantizers.stage == Stage.OFF:
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(QuantizedLayer._quantized)(self, input, *args, **kwargs)
        return self._quantized(input, *args, **kwargs)

    def _quantized(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        alone = self.is_watched() or is_estimating(self.norm)
        with torch._C.DisableTorchFunction():  # what is called in here is no call of the user's forward
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            output = _compute(self, input, *self.effective_parameters(fold=not alone), *args, **kwargs)
            behind = alone and (self.norm is not None or self.relu)
            relu = self.relu and self.quantizers.computes_int8 and not behind
            if self.quantize_output is not None and not behind and (relu or not self.relu):
                output = self.quantize_output.relu_fake_quantize_(output, relu=relu)
        self.quantizers.calls.enter(output, self.layer_name, norm=None if alone else self.norm, rectified=relu)
        return output

    def is_watched(self) -> bool:
        """Return whether hooks see what is computed between this layer and the end of its norm and its ReLU."""
        layer, norm, relu = cast(Any, self), self.norm, self.relu_module
        if norm is None and not self.relu:
            return False
        return bool(
            any(GLOBAL_HOOKS)
            or _hooks_behind(layer)
            or (norm is not None and (_hooks_before(norm) or (self.relu and _hooks_behind(norm))))
            or (relu is not None and _hooks_before(relu))
        )

    def effective_parameters(self, *, fold: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, fake-quantized, with batch norm folded in if ``fold``.

        A norm's positive or negative gain changes a channel's scale and not its codes, so that the weight computes the
        same either way; its bias is rounded only in the units that it has when folded.
        """
        layer: Any = self
        subset = self.quantizers.subset
        if not self.quantizers.rounds or (subset is not None and layer not in subset.layers):
            return self.folded_parameters() if fold else (layer.weight, layer.bias)
        folds = fold or self.norm is None
        return effective_parameters(
            layer.weight,
            layer.bias,
            self.norm if fold else None,
            self.quantizers.input_scale(self.input_location) if folds else None,
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
        input_scale = self.quantizers.input_scale(self.input_location)
        return quantized_parameters(weight, bias, input_scale, self.weight_bits, channel_axis(layer))


GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
"""Hooks that PyTorch calls for all modules."""


def _hooks_before(module: nn.Module) -> bool:
    """Return whether hooks see, or wrap, what a module is given."""
    return bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _hooks_behind(module: nn.Module) -> bool:
    """Return whether hooks see, or wrap, what a module returns."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


class QuantizedEmbedding(Mixed):
    """What an embedding gains: rows of int8 numbers, each with a scale of its own."""

    quantizers: ActivationQuantizers
    layer_name: str
    weight_bits: int

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, (...) to (..., dimension), and fake-quantize those."""
        rows = super().forward(input)  # type: ignore[misc]
        table: Any = self
        quantizers, subset = self.quantizers, self.quantizers.subset
        if quantizers.stage == Stage.OFF:
            return rows
        if quantizers.rounds and (subset is None or table in subset.layers):
            flat = rows.flatten(0, -2)
            limit = code_limit(self.weight_bits)
            rows = fake_quantize_channels(flat, weight_scale(flat, self.weight_bits), limit).view_as(rows)
        quantizers.calls.enter(rows, self.layer_name)
        return rows


class FoldedNorm(Mixed):
    """A batch norm that its layer computes, from the first step of fake-quantization on.

    Only what that layer has computed passes through unchanged. Anything else is normalised, with the running
    statistics; with the batch's, which move them, where somebody estimates the statistics again.

    Attributes:
        quantizers: those of the model.
        quantize_output: quantizes what is normalised here, unless a ReLU behind it does.
        was_momentum: the momentum that it had when it was folded.
    """

    quantizers: ActivationQuantizers
    quantize_output: Quantizer | None
    was_momentum: float | None

    def forward(self, input: Tensor) -> Tensor:
        """Pass ``input`` through once folded; normalise it before."""
        quantizers, norm = self.quantizers, cast(Any, self)
        if quantizers.stage == Stage.OFF:
            return super().forward(input)  # type: ignore[misc]
        if quantizers.calls.origin(input).norm is norm:
            return input
        if is_estimating(norm):
            output = super().forward(input)  # type: ignore[misc]
        else:
            with torch._C.DisableTorchFunction():
                output = nn.functional.batch_norm(
                    input, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
                )
            quantizers.calls.follow(output, (input,))
        return output if self.quantize_output is None else self.quantize_output(output)


def is_estimating(norm: Any) -> bool:
    """Return whether somebody computes a norm's statistics again, over all that passes from now on.

    ``torch.optim.swa_utils.update_bn`` and Lightning's ``StochasticWeightAveraging`` take its momentum away for that.
    """
    return norm is not None and norm.training and norm.momentum is None and norm.was_momentum is not None


class PlainPath(Mixed):
    """A module of PyTorch that has a fused kernel for evaluation, which reads its layers' weights past the layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module layer by layer."""
        with _LayerByLayer():
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _LayerByLayer(TorchFunctionMode):
    """While active, PyTorch's fused kernels are off, as somebody may look at what is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules with such a kernel."""


class WatchedForward(Mixed):
    """A module whose forward calls functions (adds, ReLUs, pools) that are quantized where they stand."""

    quantizers: ActivationQuantizers
    watched_name: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, with its calls watched."""
        if self.quantizers.stage == Stage.OFF:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(WatchedForward._watched)(self, *args, **kwargs)
        return self._watched(*args, **kwargs)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        quantizers = self.quantizers
        outermost = not quantizers.calls
        quantizers.calls.push(self.watched_name, forward_code(born_as(self)))
        try:
            if outermost:
                with FunctionMode(quantizers):
                    return super().forward(*args, **kwargs)  # type: ignore[misc]
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            quantizers.calls.pop()
            if outermost:
                quantizers.shared.clear()


@dataclass(frozen=True)
class QdqFormat:
    """How a converted model writes its numbers down; every form computes the same, bit by bit.

    Attributes:
        signed: activations are int8 instead of uint8; zero points move by 128.
        weight_codes: weights are int8 buffers that are dequantized; else floats that are quantized and dequantized.
        bias_codes: biases are int32 buffers that are dequantized; else floats that lie on the grid of those.
    """

    signed: bool = False
    weight_codes: bool = True
    bias_codes: bool = True


class IntegerLayer(Mixed):
    """A layer ready for export: codes of weight and bias in buffers, dequantized by operators of the graph."""

    quantizers: ActivationQuantizers
    layer_name: str
    quantize_input: Quantizer | None
    quantize_output: Quantizer | None
    relu: bool

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer on dequantized numbers."""
        self.quantizers.calls.push(None)
        try:
            if self.quantize_input is not None:
                input = self.quantize_input(input)
            weight, bias = stored(self, "weight", torch.int8), stored(self, "bias", torch.int32)
            assert weight is not None
            output = _compute(self, input, weight, bias, *args, **kwargs)
            if self.quantize_output is not None and not self.relu:
                output = self.quantize_output(output)
        finally:
            self.quantizers.calls.pop()
        self.quantizers.calls.enter(output, self.layer_name)
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


def swap_class_(module: nn.Module, mixin: Any) -> None:
    """Turn ``module`` into an instance of ``mixin`` and its own class, in place; its class keeps its name."""
    base: Any = type(module)
    module.__class__ = _mixed(mixin, base)


def restore_class_(module: nn.Module) -> None:
    """Give ``module`` the class back that it had, and take off what was added, in place."""
    while "mixture" in type(module).__dict__:
        mixin, base = type(module).__dict__["mixture"]
        for name in mixin.__annotations__:
            module.__dict__.pop(name, None)
        module.__class__ = base


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
    layer.__class__ = _mixed(mixin, born_as(layer))
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
    members = {"__module__": base.__module__, "__doc__": base.__doc__, "mixture": (mixin, base)}
    mixed: Any = type(base.__name__, (mixin, base), members)

    @wraps(base.forward)
    def with_signature(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    mixed.forward = with_signature
    return mixed


def _restored(mixins: tuple[Any, ...], kind: Any) -> Any:
    """Return an empty module of a mixture, the last of ``mixins`` mixed in first."""
    for mixin in reversed(mixins):
        kind = _mixed(mixin, kind)
    return kind.__new__(kind)
