"""Insertion of fake-quantizers, verified against what the model computed before."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import QUANTIZERS, quantizers_in, quantizers_of
from lighten.quantization.install import install_, unquantize_
from lighten.quantization.integer_layers import convert as convert
from lighten.quantization.observe import rule_of
from lighten.quantization.record import LAYER
from lighten.quantization.select import quantizable
from lighten.quantization.settings import TRAINED_RANGES, QuantizeSettings, check_bits
from lighten.quantization.trace import Placement, place_quantizers
from lighten.quantization.verify import failing, is_unchanged, outputs_of
from lighten.utils.compression import record_
from lighten.utils.descriptions import describe
from lighten.utils.inputs import Call, ExampleInput, as_call

bank_of = quantizers_of
"""The name by which scripts know it that were written before; like ``convert``, from this module."""


def quantize_(
    model: nn.Module,
    *,
    example_input: ExampleInput | None = None,
    exclude: Sequence[str] = (),
    weight_bits: int = QuantizeSettings.weight_bits,
    ranges: str = TRAINED_RANGES,
) -> nn.Module:
    """Insert fake-quantizers, switched off, into ``model`` in place and return it.

    The model's outputs do not change until ``calibrate_`` or the ``Quantize`` callback enables them. Parameter
    names do not change; the state dict gains the buffers of ``activation_ranges``.

    Args:
        model: operations that have no integer form stay in floating point.
        example_input: a tensor, a tuple (positional) or a dict (keywords); without it, the model's first call is used.
        exclude: names, patterns or types (``"Embedding"``) of layers that stay in floating point.
        weight_bits: 2 to 8, symmetric, one scale for each output channel. With 7, pair sums do not saturate on x86
            processors without VNNI instructions.
        ranges: how activation ranges follow the data: ``"moving_average"``, ``"min_max"``, ``"percentile"``, ``"mse"``,
            ``"entropy"`` or ``"lsq"``.

    Raises:
        UserError: on a setting out of range, an ``exclude`` that matches nothing, a model without a layer to
            quantize, or one that was quantized before.

    Example:
        >>> model = quantize_(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), example_input=torch.zeros(2, 4))
        >>> model.activation_ranges.names
        ['0.input']
    """
    check_bits(weight_bits)
    rule_of(ranges)
    if quantizers_in(model):
        raise UserError(f"{type(model).__name__} has fake-quantizers already; take them off with unquantize_ first")
    layers, left = quantizable(model, exclude)
    settings = {"exclude": list(exclude), "weight_bits": weight_bits, "ranges": ranges}
    record_(model, quantization=settings)
    if example_input is None:
        _insert_at_first_call(model, layers, left, settings)
    else:
        _insert(model, as_call(example_input), layers, left, settings)
    return model


def _insert(
    model: nn.Module, call: Call, layers: Sequence[str], left: dict[str, str], settings: dict[str, Any]
) -> None:
    """Place quantizers, and verify that the model computes what it did while they round nothing.

    Layers, and modules whose own calls of functions are quantized, that fail this stay in floating point.
    """
    before = outputs_of(model, call)

    def is_right(placement: Placement) -> bool:
        unquantize_(model)
        if not placement.layers and not placement.tables:
            return True
        install_(model, placement, settings, left)
        return is_unchanged(model, quantizers_of(model), call, before)

    def placed(parts: Sequence[tuple[str, str]]) -> Placement:
        unwatched = {name for kind, name in frames if (kind, name) not in parts}
        unquantize_(model)
        return place_quantizers(model, call, [name for kind, name in parts if kind == LAYER], unwatched)

    placement = place_quantizers(model, call, layers)
    if not is_right(placement):
        frames = [("calls", name) for name in sorted(placement.frames)]
        parts = [*((LAYER, name) for name in layers), *frames]
        failed = failing(parts, lambda some: is_right(placed(some)))
        left |= {name or type(model).__name__: f"its {kind} would change the outputs" for kind, name in failed}
        placement = placed([part for part in parts if part not in failed])
        is_right(placement)
    if not hasattr(model, QUANTIZERS):
        why = ", ".join(f"{name!r} {reason}" for name, reason in {**left, **placement.left}.items())
        raise UserError(f"quantize: no layer of {type(model).__name__} can be quantized: {why}")
    record_(model, example=_described(call))


def _described(call: Call) -> dict[str, Any] | None:
    try:
        return describe(call)
    except UserError:  # it holds objects
        return None


def _insert_at_first_call(
    model: nn.Module, layers: Sequence[str], left: dict[str, str], settings: dict[str, Any]
) -> None:
    def insert(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        _insert(module, (args, kwargs), layers, left, settings)

    handle = model.register_forward_pre_hook(insert, with_kwargs=True)
