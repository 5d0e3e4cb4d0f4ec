"""Verification that quantizers which do not round leave the outputs of a model unchanged."""

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

TOLERANCE = 1e-3
"""What outputs may differ by, relative to the largest of them: a folded norm rounds otherwise."""

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

    Args:
        model: quantized, its quantizers off; left as it is.
        quantizers: its own.
        call: arguments of its forward.
        before: what it put out in eval mode before anything was inserted.
    """
    in_training = outputs_of(model, call, training=True)
    with _not_rounding(quantizers):
        pairs = ((before, False), (in_training, True))
        if all(expected is None or _agree(expected, outputs_of(model, call, training=t)) for expected, t in pairs):
            return True
    return before is not None and _agree(before, outputs_of(model, call)) and _is_unchanged_in_double(model, call)


def _is_unchanged_in_double(model: nn.Module, call: Call) -> bool:
    """Return the same of float64: what a forward chooses by its values may depend on float32's rounding."""
    copied = clone(model).double()
    call = map_tensors(lambda x: x.double() if x.is_floating_point() else x, call)
    for training in (False, True):
        expected = outputs_of(copied, call, training=training)
        with _not_rounding(quantizers_of(copied)):
            if expected is None or not _agree(expected, outputs_of(copied, call, training=training)):
                return False
    return True


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


def _agree(one: list[Tensor], other: list[Tensor] | None) -> bool:
    if other is None or [x.shape for x in one] != [x.shape for x in other]:
        return False
    return all(_distance(a, b) <= TOLERANCE for a, b in zip(one, other, strict=True))


def _distance(one: Tensor, other: Tensor) -> float:
    if one.is_meta or not one.numel() or torch.equal(one, other):
        return 0.0
    one, other = (x.to(torch.complex128) if x.is_complex() else x.double() for x in (one, other))
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    gap = (one - other).abs()[finite]
    return float(gap.max() / one.abs()[finite].max().clamp_min(1e-30)) if gap.numel() else 0.0
