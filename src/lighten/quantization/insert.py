"""Insert fake-quantizers into a model, give them ranges, convert the model to integers."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage
from lighten.quantization.fold import is_foldable
from lighten.quantization.functions import FunctionQuantizers
from lighten.quantization.layers import (
    FUSED,
    INT8,
    FoldedNorm,
    QdqFormat,
    QuantizedEmbedding,
    QuantizedLayer,
    WatchedForward,
    can_quantize,
    restore_class_,
    swap_class_,
    to_integers_,
    why_not,
)
from lighten.quantization.observe import rule_of
from lighten.quantization.quantizer import Quantizer
from lighten.quantization.record import LAYER
from lighten.quantization.trace import Placement, place_quantizers
from lighten.quantization.verify import failing, is_unchanged, outputs_of
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.clone import clone
from lighten.utils.compression import record_, record_of
from lighten.utils.inputs import Call, ExampleInput, as_call, check_call
from lighten.utils.modules import match_names

ONNX_FORMAT = QdqFormat()
"""What ONNX has: unsigned activations, codes of weights and biases."""

QUANTIZERS = "activation_ranges"
"""Name under which they are registered at the model's root, and so in state dicts."""


def quantize_(
    model: nn.Module,
    *,
    example_input: ExampleInput | None = None,
    exclude: Sequence[str] = (),
    weight_bits: int = 7,
    ranges: str = "moving_average",
) -> nn.Module:
    """Insert fake-quantizers, switched off, into ``model`` in place and return it.

    The model computes what it did before until ``calibrate_`` or the ``Quantize`` callback enables them. Parameter
    names do not change; the state dict gains the buffers of ``activation_ranges``.

    Args:
        model: convolutional or dense; what has no integer form stays in floating point.
        example_input: a tensor, a tuple (positional) or a dict (keywords); without it the model's first call serves.
        exclude: names, patterns or types (``"Embedding"``) of layers that stay in floating point.
        weight_bits: 2 to 8, symmetric, one scale an output channel. 7 keeps pair sums of x86 processors without VNNI
            instructions from saturating.
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


def calibrate_(
    model: nn.Module, batches: Iterable[Any], *, ranges: str | None = None, batch: Roles | None = None
) -> nn.Module:
    """Set the ranges of a quantized ``model`` from data, enable fake-quantization, return the model.

    Args:
        model: as ``quantize_`` left it; runs in eval mode without gradients, its modes are left as found.
        batches: inputs, ``(inputs, labels)`` pairs or dicts (``labels`` are ignored).
        ranges: another rule than the one ``quantize_`` was given.
        batch: what the parts of other batches are, such as ``("input", "input", "label")`` or ``{"target": "label"}``.

    Raises:
        UserError: if there is no batch, or the model was not quantized.
    """
    if record_of(model).quantization is None:
        raise UserError(f"{type(model).__name__} has no fake-quantizers; call quantize_ on it first")
    modes = {module: module.training for module in model.modules()}
    quantizers = None
    try:
        model.eval()
        form = BatchFormat(batch)
        for each in batches:
            args, kwargs = inputs_of_batch(each, form, model)
            with torch.no_grad():
                if not hasattr(model, QUANTIZERS):
                    model(*args, **kwargs)
                if quantizers is None:
                    quantizers = quantizers_of(model)
                    quantizers.restart(ranges)
                model(*args, **kwargs)
            if quantizers.rule.estimate is None:
                quantizers.update()  # a histogram gathers all batches first
    finally:
        for module, training in modes.items():
            module.training = training
        if quantizers is not None:
            quantizers.observing = False
    if quantizers is None:
        raise UserError("calibration needs at least one batch, none was given")
    if quantizers.rule.estimate is not None:
        quantizers.update()
    unknown = quantizers.unknown()
    if unknown:
        raise UserError(f"quantize: {unknown[0]!r} was not reached by the forward pass; name it in exclude")
    quantizers.stage = Stage.ON
    return model


def inputs_of_batch(batch: Any, form: BatchFormat, model: nn.Module) -> Call:
    """Return the model's arguments in a batch of calibration data.

    Raises:
        UserError: if it holds labels alone, or what ``model`` does not take.
    """
    args, kwargs = form.split(batch).call
    if not args and not kwargs:
        raise UserError("calibration: a batch holds labels alone; expected inputs, (inputs, labels) or a dict")
    check_call(model, (args, kwargs))
    return args, kwargs


def unquantize_(model: nn.Module) -> nn.Module:
    """Take all fake-quantizers off ``model``, in place, and return it: the float network that it was made of."""
    for module in list(model.modules()):
        restore_class_(module)
        if hasattr(module, QUANTIZERS):
            delattr(module, QUANTIZERS)
        if record_of(module, own=True).quantization is not None:
            record_(module, quantization=None)
    return model


def quantizers_of(model: nn.Module) -> ActivationQuantizers:
    """Return the activation quantizers of a quantized model."""
    quantizers = getattr(model, QUANTIZERS, None)
    if not isinstance(quantizers, ActivationQuantizers):
        raise UserError(f"{type(model).__name__} has no fake-quantizers; call quantize_ on it first")
    return quantizers


def quantizers_in(model: nn.Module) -> list[ActivationQuantizers]:
    """Return those in ``model``, and those that its layers belong to where it is a part of a quantized model."""
    held = [m if isinstance(m, ActivationQuantizers) else vars(m).get("quantizers") for m in model.modules()]
    return list({id(each): each for each in held if isinstance(each, ActivationQuantizers)}.values())


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
    if any(quantizers.names and len(quantizers.unknown()) == len(quantizers.names) for quantizers in found):
        raise UserError("no activation has a range yet; run data through the model before export")
    import_module("torch.ao.quantization.fx._decomposed")  # registers the operators, which an exporter must find

    converted = clone(model).eval()
    refold_norms_(converted)
    for module in list(converted.modules()):
        if isinstance(module, QuantizedEmbedding):
            to_integers_(module, form)
        elif isinstance(module, QuantizedLayer):
            norm = module.norm
            to_integers_(module, form)
            if norm is not None:
                _replace(converted, norm, nn.Identity())
                module.__dict__.pop("norm")
                module.__dict__.pop("norm_name")
    for quantizers in quantizers_in(converted):
        quantizers.stage, quantizers.signed = Stage.EXPORT, form.signed
    return converted


def refold_norms_(model: nn.Module) -> None:
    """Fold the norms that stand behind quantized layers now: another may have taken the place of the first.

    ``sync_batchnorm`` puts new ones in at the beginning of a fit, and again at its end. Runs after both.

    Raises:
        UserError: if something that cannot be folded has taken a norm's place.
    """
    for root in [module for module in model.modules() if hasattr(module, QUANTIZERS)]:
        for layer in [m for m in root.modules() if isinstance(m, QuantizedLayer) and m.norm_name is not None]:
            norm = root.get_submodule(str(layer.norm_name))
            if norm is layer.norm:
                continue
            if not is_foldable(norm):
                raise UserError(
                    f"quantize: {layer.norm_name!r} was a batch norm and is now {type(norm).__name__}, which cannot be "
                    "folded; leave it as it was from setup to the fit's end"
                )
            swap_class_(norm, FoldedNorm)
            norm.__dict__.update(
                quantizers=layer.quantizers,
                quantize_output=None if layer.relu else layer.quantize_output,
                was_momentum=norm.momentum,
            )
            layer.__dict__["norm"] = norm


def check_bits(weight_bits: object) -> None:
    """Raise ``UserError`` unless it is a whole number from 2 to 8."""
    if not (isinstance(weight_bits, int) and not isinstance(weight_bits, bool) and 2 <= weight_bits <= 8):
        raise UserError(f"weight_bits={weight_bits!r}: expected a whole number from 2 to 8")


def summary(model: nn.Module) -> str:
    """Return one line: how many layers and activations are quantized, and which layers are not."""
    quantizers = quantizers_of(model)
    layers = sum(isinstance(m, QuantizedLayer | QuantizedEmbedding) for m in model.modules())
    line = f"{layers} layers, {len(quantizers.names)} activations in int8"
    whys: dict[str, list[str]] = {}
    for name, why in quantizers.left.items():
        whys.setdefault(why, []).append(name)
    left = "; ".join(f"{', '.join(names)} ({why})" for why, names in whys.items())
    return f"{line}; in floating point: {left}" if left else line


def quantizable(model: nn.Module, exclude: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names of layers to quantize, and of those that stay in floating point, with why."""
    names = [name for name, module in model.named_modules() if can_quantize(module)]
    whys = {name: why_not(module) for name, module in model.named_modules()}
    left = {name: why for name, why in whys.items() if why is not None}
    for pattern in exclude:
        matched = matched_modules(model, pattern)
        layers = [name for name in names if name in matched]
        if not layers and not matched & set(left):
            kinds = sorted({type(model.get_submodule(name)).__name__ for name in matched})
            raise UserError(
                f"exclude={pattern!r}: {', '.join(kinds)} has no int8 form and stays in floating point anyway; "
                f"int8 forms have {INT8}"
            )
        left |= dict.fromkeys(layers, f"excluded by {pattern!r}")
    names = [name for name in names if name not in left]
    if not names:
        why = "".join(f"; {name!r}: {why}" for name, why in left.items())
        raise UserError(f"{type(model).__name__} has no layer left to quantize; int8 forms have {INT8}{why}")
    return names, left


def matched_modules(model: nn.Module, pattern: str) -> set[str]:
    """Return the modules that ``pattern`` names, by name or by type, and everything under them."""
    modules = dict(model.named_modules())
    typed = [name for name, module in modules.items() if name and type(module).__name__ == pattern]
    return match_names(typed or [pattern], modules)


def _insert(
    model: nn.Module, call: Call, layers: Sequence[str], left: dict[str, str], settings: dict[str, Any]
) -> None:
    """Place quantizers, and prove that the model computes what it did while they round nothing.

    Layers, and modules whose own calls of functions are quantized, that fail the proof stay in floating point.
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
        layer.__dict__.update(
            quantizers=quantizers,
            layer_name=name,
            weight_bits=settings["weight_bits"],
            input_location=index[at.input],
            quantize_input=quantizer(at.input, shared=at.input in placement.shared) if at.quantizes_input else None,
            quantize_output=quantizer(at.output, changed=at.changed) if at.output else None,
            norm=None,
            norm_name=at.norm,
            relu=at.relu,
            relu_module=model.get_submodule(at.relu_module) if at.relu_module else None,
        )
    for name in placement.tables:
        table = model.get_submodule(name)
        swap_class_(table, QuantizedEmbedding)
        table.__dict__.update(quantizers=quantizers, layer_name=name, weight_bits=settings["weight_bits"])
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
            frame.__dict__.update(quantizers=quantizers, watched_name=name)


def _insert_at_first_call(
    model: nn.Module, layers: Sequence[str], left: dict[str, str], settings: dict[str, Any]
) -> None:
    def insert(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        _insert(module, (args, kwargs), layers, left, settings)

    handle = model.register_forward_pre_hook(insert, with_kwargs=True)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
