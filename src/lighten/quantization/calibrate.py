"""Calibration: ranges of a quantized model from data."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import QUANTIZERS, Stage, quantizers_of
from lighten.utils.batch import BatchFormat, Roles
from lighten.utils.compression import record_of
from lighten.utils.inputs import Call, check_call
from lighten.utils.modules import modes_kept


def calibrate_(
    model: nn.Module, batches: Iterable[Any], *, ranges: str | None = None, batch: Roles | None = None
) -> nn.Module:
    """Set the ranges of a quantized ``model`` from data, enable fake-quantization, return the model.

    Args:
        model: as returned by ``quantize_``; it runs in eval mode without gradients, and its modes are restored.
        batches: inputs, ``(inputs, labels)`` pairs or dicts (``labels`` are ignored).
        ranges: another rule than the one given to ``quantize_``.
        batch: roles of the parts of other batches, such as ``("input", "input", "label")`` or ``{"target": "label"}``.

    Raises:
        UserError: if there is no batch, or the model was not quantized.
    """
    if record_of(model).quantization is None:
        raise UserError(f"{type(model).__name__} has no fake-quantizers; call quantize_ on it first")
    quantizers = None
    try:
        with modes_kept(model):
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
