"""Installation of fake-quantizers in the layers, norms and forwards of a model, and their removal."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import QUANTIZERS, ActivationQuantizers, quantizers_of
from lighten.quantization.fold import is_foldable
from lighten.quantization.functions import FunctionQuantizers
from lighten.quantization.layers import (
    FUSED,
    FoldedNorm,
    LayerQuantizers,
    QuantizedEmbedding,
    QuantizedLayer,
    WatchedForward,
)
from lighten.quantization.quantizer import Quantizer
from lighten.quantization.swap_class import restore_class_, swap_class_
from lighten.quantization.trace import Placement
from lighten.utils.compression import record_, record_of


def unquantize_(model: nn.Module) -> nn.Module:
    """Take all fake-quantizers off ``model``, in place, and return it: the float network that it was made of."""
    for module in list(model.modules()):
        restore_class_(module)
        if hasattr(module, QUANTIZERS):
            delattr(module, QUANTIZERS)
        if record_of(module, own=True).quantization is not None:
            record_(module, quantization=None, example=None)
    return model


def refold_norms_(model: nn.Module) -> None:
    """Fold the norms that stand behind quantized layers now: another may have taken the place of the first.

    ``sync_batchnorm`` puts new ones in at the beginning of a fit, and again at its end. Runs after both.

    Raises:
        UserError: if something that cannot be folded has taken a norm's place.
    """
    for root in [module for module in model.modules() if hasattr(module, QUANTIZERS)]:
        for layer in [m for m in root.modules() if isinstance(m, QuantizedLayer)]:
            own = layer.quantizers
            norm = root.get_submodule(own.norm_name) if own.norm_name is not None else None
            if norm is None or norm is own.norm:
                continue
            if not is_foldable(norm):
                raise UserError(
                    f"quantize: {own.norm_name!r} was a batch norm and is now {type(norm).__name__}, which cannot be "
                    "folded; leave it as it was from setup to the fit's end"
                )
            swap_class_(norm, FoldedNorm)
            norm.__dict__.update(
                activation_quantizers=layer.activation_quantizers,
                quantize_output=None if own.relu else own.output,
                was_momentum=norm.momentum,
            )
            own.norm = norm


def install_(model: nn.Module, placement: Placement, settings: dict[str, Any], left: Mapping[str, str]) -> None:
    """Turn the layers, norms and forwards of ``model`` into quantized ones, as ``placement`` has it, in place.

    Args:
        model: whose quantizers these are, or a copy of it.
        placement: what belongs where.
        settings: as ``quantize_`` was given them.
        left: layers that stay in floating point, and why.
    """
    quantizers = ActivationQuantizers(placement.locations, settings["ranges"], settings["weight_bits"])
    quantizers.left, quantizers.placement = {**left, **placement.left}, placement
    quantizers.untrained = set(placement.untrained)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "meta":  # weights that come later find them where they go
        quantizers.to(device)
    index = {name: i for i, name in enumerate(placement.locations)}

    def quantizer(location: str, **known: bool) -> Quantizer:
        return Quantizer(quantizers, index[location], **known)

    for name, at in placement.layers.items():
        layer = model.get_submodule(name)
        swap_class_(layer, QuantizedLayer)
        own = LayerQuantizers(
            name,
            index[at.input],
            quantizer(at.input, shared=at.input in placement.shared) if at.quantizes_input else None,
            quantizer(at.output, changed=at.changed) if at.output else None,
            norm_name=at.norm,
            relu=at.relu,
            relu_module=model.get_submodule(at.relu_module) if at.relu_module else None,
        )
        layer.__dict__.update(activation_quantizers=quantizers, quantizers=own)
    for name in placement.tables:
        table = model.get_submodule(name)
        swap_class_(table, QuantizedEmbedding)
        table.__dict__.update(activation_quantizers=quantizers, layer_name=name)
    _watch_calls(model, placement, quantizers, quantizer)
    model.add_module(QUANTIZERS, quantizers)
    record_(model, quantization=settings)
    refold_norms_(model)


def follow_(copied: nn.Module, model: nn.Module) -> None:
    """Give a copy of ``model`` its fake-quantizers too, where it was made before them, and their stage and ranges."""
    quantizers = quantizers_of(model)
    if not hasattr(copied, QUANTIZERS):
        install_(copied, quantizers.placement, record_of(model).quantization, quantizers.left)
    quantizers_of(copied).follow(quantizers)


def _watch_calls(model: nn.Module, placement: Placement, quantizers: ActivationQuantizers, quantizer: Any) -> None:
    for name, at in placement.calls.items():
        inputs = {i: quantizer(location, shared=location in placement.shared) for i, location in at.inputs.items()}
        output = quantizer(at.output, on_grid=at.keeps, changed=at.changed) if at.output is not None else None
        call = FunctionQuantizers(inputs, output, relu=at.relu, done=at.done)
        quantizers.functions.add(name, placement.identities[name], call)
    fused = {name for name, module in model.named_modules() if isinstance(module, FUSED)}
    for name in placement.frames | fused:
        frame = model.get_submodule(name)
        if not isinstance(frame, QuantizedLayer | QuantizedEmbedding):  # the model may be a single layer
            swap_class_(frame, WatchedForward)
            frame.__dict__.update(activation_quantizers=quantizers, watched_name=name)
