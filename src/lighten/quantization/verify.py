"""Verification that quantizers which do not round leave the outputs of a model unchanged."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage, quantizers_of
from lighten.quantization.layers import FoldedNorm
from lighten.quantization.record import set_mode
from lighten.utils.clone import clone
from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import preserved
from lighten.utils.rounding import UNITS, RoundedOtherwise

TOLERANCE = 1e-3
"""What outputs may differ by, relative to the largest of them: a folded norm rounds otherwise."""
AS_ROUNDING = 2.0
"""How many times as far off as where sums are rounded otherwise outputs may be, if rounding decides what they are."""

Part = TypeVar("Part")


def outputs_of(model: nn.Module, call: Call, *, training: bool = False) -> list[Tensor] | None:
    """Return the tensors that ``model`` puts out, or ``None`` where it cannot run in this mode; it is left as it is.

    In training mode, norms that were folded use their running statistics, as they will in the fit.
    """
    args, kwargs = map_tensors(torch.Tensor.clone, call)  # a forward may write into its arguments
    try:
        with preserved(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(0)
            set_mode(model, training)
            for norm in model.modules():
                if isinstance(norm, FoldedNorm):
                    norm.train(False)
            return [x.detach().clone() for x in leaves_of(model(*args, **kwargs)) if isinstance(x, Tensor)]
    except Exception:
        return None


def is_unchanged(model: nn.Module, quantizers: ActivationQuantizers, call: Call, before: list[Tensor] | None) -> bool:
    """Return whether a model with quantizers that do not round puts out what it did, in eval and in training mode.

    What a forward chooses by its values may depend on rounding. Where float32 disagrees, float64 tells; where it cannot
    run, outputs may be as far off as where sums are rounded otherwise.

    Args:
        model: quantized, its quantizers off; left as it is.
        quantizers: its own.
        call: arguments of its forward.
        before: what it put out in eval mode before anything was inserted.
    """
    in_training = outputs_of(model, call, training=True)
    for expected, training in ((before, False), (in_training, True)):
        if expected is None:
            continue
        with _not_rounding(quantizers):
            found = outputs_of(model, call, training=training)
        if _gap(expected, found) <= TOLERANCE:
            continue
        if not training and not _gap(expected, outputs_of(model, call)) <= TOLERANCE:
            return False
        gap = _gap_in_double(model, call, training)
        if gap is None:
            gap = 0.0 if _is_rounding(model, call, training, expected, found) else math.inf
        if gap > TOLERANCE:
            return False
    return True


def _gap_in_double(model: nn.Module, call: Call, training: bool) -> float | None:
    """Return how far apart outputs are with quantizers and without in float64, or ``None`` where that cannot run."""
    copied = clone(model).double()
    call = map_tensors(lambda x: x.double() if x.is_floating_point() else x, call)
    expected = outputs_of(copied, call, training=training)
    with _not_rounding(quantizers_of(copied)):
        return None if expected is None else _gap(expected, outputs_of(copied, call, training=training))


def _is_rounding(
    model: nn.Module, call: Call, training: bool, expected: list[Tensor], found: list[Tensor] | None
) -> bool:
    """Return whether outputs are no further off than where the sums of a model are rounded otherwise."""
    shown = 0.0
    for units in UNITS:
        with RoundedOtherwise(units):
            shown = max(shown, _gap(expected, outputs_of(model, call, training=training)))
    return shown > TOLERANCE and math.isfinite(shown) and _gap(expected, found) <= AS_ROUNDING * shown


def failing(parts: Sequence[Part], passes: Callable[[Sequence[Part]], bool]) -> list[Part]:
    """Return the parts that cannot join the others: halves are tried, and halves of what fails."""
    admitted: list[Part] = []
    failed: list[Part] = []

    def admit(block: Sequence[Part]) -> None:
        if passes([*admitted, *block]):
            admitted.extend(block)
        elif len(block) == 1:
            failed.extend(block)
        else:
            admit(block[: len(block) // 2])
            admit(block[len(block) // 2 :])

    admit(parts)
    return failed


@contextmanager
def _not_rounding(quantizers: ActivationQuantizers) -> Iterator[None]:
    stage, quantizers.stage, quantizers.rounds = quantizers.stage, Stage.ON, False
    try:
        yield
    finally:
        quantizers.stage, quantizers.rounds = stage, True


def _gap(one: list[Tensor], other: list[Tensor] | None) -> float:
    if other is None or [x.shape for x in one] != [x.shape for x in other]:
        return math.inf
    return max((_distance(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    if one.is_meta or not one.numel() or torch.equal(one, other):
        return 0.0
    one, other = (x.to(torch.complex128) if x.is_complex() else x.double() for x in (one, other))
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    gap = (one - other).abs()[finite]
    return float(gap.max() / one.abs()[finite].max().clamp_min(1e-30)) if gap.numel() else 0.0
