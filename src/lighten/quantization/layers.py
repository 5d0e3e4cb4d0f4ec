"""Fake-quantized layers: thin subclasses that a model's own layers are turned into.

Only the class of a layer changes. Its name, parameters, ``isinstance`` and hooks survive; while fake-quantization is
off it is the layer that it was. A model that was compiled in place runs compiled until then and uncompiled from there
on: ranges that move with every step would be new constants in a graph each time.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage
from lighten.quantization.calls import forward_code
from lighten.quantization.fake_quant import (
    code_limit,
    fake_quantize_channels,
    quantized_parameters,
    weight_scale,
)
from lighten.quantization.fold import fold_batch_norm
from lighten.quantization.functions import FunctionMode
from lighten.quantization.layer_kinds import channel_axis, compute, output_groups
from lighten.quantization.parameters import effective_parameters
from lighten.quantization.quantizer import Quantizer
from lighten.quantization.swap_class import Mixed, born_as


@dataclass
class LayerQuantizers:
    """The quantizers of one layer, and what it computes besides.

    Attributes:
        name: of the layer, seen from the model's root.
        input_location: index of its input's range.
        input: quantizes the input, where nothing before has done it.
        output: quantizes the output, unless something behind it does.
        norm_name: of the batch norm that is folded into it, seen from the model's root.
        relu: once fake-quantization is on, it computes the ReLU behind it as well.
        relu_module: what computes that ReLU otherwise, where a module does; a plain reference.
        norm: that batch norm; a plain reference, the norm stays where it was.
    """

    name: str
    input_location: int
    input: Quantizer | None
    output: Quantizer | None
    norm_name: str | None
    relu: bool
    relu_module: nn.Module | None
    norm: nn.Module | None = None


class QuantizedLayer(Mixed):
    """What a convolution or linear layer gains: fake-quantized weight, bias, input and output; norm and ReLU in it.

    Where somebody looks at what the layer, its norm or its ReLU computes (by a hook), or estimates the norm's
    statistics, each computes its own part: the same numbers, except for the rounding of the bias.

    Attributes:
        activation_quantizers: those of the model.
        quantizers: those of this layer.
    """

    activation_quantizers: ActivationQuantizers
    quantizers: LayerQuantizers

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer as the stage demands."""
        if self.activation_quantizers.stage == Stage.OFF:
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(QuantizedLayer._quantized)(self, input, *args, **kwargs)
        return self._quantized(input, *args, **kwargs)

    def _quantized(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = self.quantizers
        alone = self.is_watched() or is_estimating(own.norm)
        with torch._C.DisableTorchFunction():  # what is called in here is no call of the user's forward
            if own.input is not None:
                input = own.input(input)
            output = compute(self, input, *self.effective_parameters(fold=not alone), *args, **kwargs)
            behind = alone and (own.norm is not None or own.relu)
            relu = own.relu and self.activation_quantizers.computes_int8 and not behind
            if own.output is not None and not behind and (relu or not own.relu):
                output = own.output.relu_fake_quantize_(output, relu=relu)
        norm = None if alone else own.norm
        self.activation_quantizers.calls.enter(output, own.name, norm=norm, rectified=relu)
        return output

    @property
    def weight_bits(self) -> int:
        """Of its weight."""
        return self.activation_quantizers.weight_bits

    def is_watched(self) -> bool:
        """Return whether hooks see what is computed between this layer and the end of its norm and its ReLU."""
        layer, own = cast(Any, self), self.quantizers
        norm, relu = own.norm, own.relu_module
        if norm is None and not own.relu:
            return False
        return bool(
            any(GLOBAL_HOOKS)
            or _hooks_behind(layer)
            or (norm is not None and (_hooks_before(norm) or (own.relu and _hooks_behind(norm))))
            or (relu is not None and _hooks_before(relu))
        )

    def effective_parameters(self, *, fold: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, fake-quantized, with batch norm folded in if ``fold``.

        A norm's positive or negative gain changes a channel's scale and not its codes, so that the weight computes the
        same either way; its bias is rounded only in the units that it has when folded.
        """
        layer: Any = self
        subset = self.activation_quantizers.subset
        if not self.activation_quantizers.rounds or (subset is not None and layer not in subset.layers):
            return self.folded_parameters() if fold else (layer.weight, layer.bias)
        folds = fold or self.quantizers.norm is None
        return effective_parameters(
            layer.weight,
            layer.bias,
            self.quantizers.norm if fold else None,
            self.activation_quantizers.input_scale(self.quantizers.input_location) if folds else None,
            bits=self.weight_bits,
            axis=channel_axis(layer),
            groups=output_groups(layer),
        )

    def folded_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with batch norm folded in, in floating point."""
        layer: Any = self
        if self.quantizers.norm is None:
            return layer.weight, layer.bias
        return fold_batch_norm(
            layer.weight, layer.bias, self.quantizers.norm, axis=channel_axis(layer), groups=output_groups(layer)
        )

    def scales(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the scales of weight and bias; groups of a transposed convolution share those of the weight."""
        layer: Any = self
        input_scale = self.activation_quantizers.input_scale(self.quantizers.input_location)
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

    activation_quantizers: ActivationQuantizers
    layer_name: str

    @property
    def weight_bits(self) -> int:
        """Of its rows."""
        return self.activation_quantizers.weight_bits

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up, (...) to (..., dimension), and fake-quantize those."""
        rows = super().forward(input)  # type: ignore[misc]
        table: Any = self
        quantizers, subset = self.activation_quantizers, self.activation_quantizers.subset
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
        activation_quantizers: those of the model.
        quantize_output: quantizes what is normalised here, unless a ReLU behind it does.
        was_momentum: the momentum that it had when it was folded.
    """

    activation_quantizers: ActivationQuantizers
    quantize_output: Quantizer | None
    was_momentum: float | None

    def forward(self, input: Tensor) -> Tensor:
        """Pass ``input`` through once folded; normalise it before."""
        quantizers, norm = self.activation_quantizers, cast(Any, self)
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

    activation_quantizers: ActivationQuantizers
    watched_name: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, with its calls watched."""
        if self.activation_quantizers.stage == Stage.OFF:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(WatchedForward._watched)(self, *args, **kwargs)
        return self._watched(*args, **kwargs)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        quantizers = self.activation_quantizers
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


_uncompiled = torch.compiler.disable
"""Wraps what a compiler must call and not look into; outside of one that would only cost time."""
