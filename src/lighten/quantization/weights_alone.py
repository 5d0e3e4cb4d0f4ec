"""Int8 weights alone: activations that were quantized go back to floating point, where integers are slow."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import quantizers_in
from lighten.quantization.settings import STATIC, TRAIN
from lighten.utils.compression import record_, record_of

ACTIVATIONS, FLOAT32 = "activations", "float32"
"""Key and value of a model's quantization settings that say so."""


def weights_alone_(model: nn.Module, why: str = "") -> nn.Module:
    """Let a quantized model compute in floating point with the int8 weights that it has, in place, and return it.

    Its ranges are forgotten, so this is not undone: keep a copy.

    Args:
        model: calibrated, or trained with ``Quantize``.
        why: kept with it, for people.

    Raises:
        UserError: if it has no quantized activations.
    """
    parts = [part for part in model.modules() if quantizes_activations(record_of(part, own=True).quantization)]
    if not parts:
        raise UserError(f"{type(model).__name__} has no quantized activations; quantize it first")
    for part in parts:
        settings = {**(record_of(part).quantization or {}), ACTIVATIONS: FLOAT32, **({"why": why} if why else {})}
        record_(part, quantization=settings)
        for quantizers in quantizers_in(part):
            quantizers.forget_ranges()
        mark_(part, settings)
    return model


def quantizes_activations(settings: Mapping[str, Any] | None) -> bool:
    """Return whether what these settings have quantized computes in integers, with ranges of its own."""
    if settings is None or settings.get("mode", TRAIN) not in (TRAIN, STATIC):
        return False
    return settings.get(ACTIVATIONS) != FLOAT32


def mark_(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Tell the quantizers of ``model`` whether they are for weights alone, as its settings say."""
    for quantizers in quantizers_in(model):
        quantizers.weights_alone = settings.get(ACTIVATIONS) == FLOAT32


def is_weights_alone(model: nn.Module) -> bool:
    """Return whether ``model`` or a part of it has int8 weights and computes in floating point."""
    return any(quantizers.weights_alone for quantizers in quantizers_in(model))
