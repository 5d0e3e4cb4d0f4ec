"""Comparison of two models on a synthetic input."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lighten.pruning.answers import answers_of
from lighten.pruning.norms import masked_norms, restore_
from lighten.utils.clone import clone
from lighten.utils.descriptions import describe as describe
from lighten.utils.descriptions import synthesise as synthesise
from lighten.utils.inputs import Call, leaves_of, map_tensors
from lighten.utils.preserve import preserved, random_state_kept

COARSE = 0.1
"""What outputs may differ by in 16 bits, where the order of a sum shows; what depends on the precision shows more."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: COARSE, torch.float16: COARSE}
"""What the outputs of equal networks may differ by, relative to the largest."""


def difference(
    one: nn.Module, other: nn.Module, example: Mapping[str, Any], *, dtype: torch.dtype,
    copies: bool = True, autocast: torch.dtype | None = None,
) -> float:  # fmt: skip
    """Return the largest difference of two models' outputs, each relative to its largest value.

    Both are run on one synthetic input; random state is left as found. Outputs that differ in shape or number are
    infinitely far apart; where the first model's hold a NaN, nothing can be said: NaN is returned.

    Args:
        one: run first.
        other: run second.
        example: what :func:`describe` returned.
        dtype: of the input, and of the models where they are copied.
        copies: run copies in eval mode; without, the models are run as they are.
        autocast: run under autocast to this type.

    Raises:
        RuntimeError: what the models raise, if they cannot be run so.
    """
    device = next((p.device for p in one.parameters()), torch.device("cpu"))
    results = []
    for model in (one, other):
        run = _copy_in(dtype, model) if copies else model
        under = torch.autocast(device.type, autocast, enabled=autocast is not None)
        results.append(outputs_of(run, example, dtype, under=under))
    return distance(*results)


def outputs_of(
    model: nn.Module,
    example: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    under: AbstractContextManager[Any] | None = None,
) -> list[Tensor]:
    """Return all tensors that ``model`` puts out on the synthetic input, which is the same at every call.

    Random state is left as found.

    Args:
        model: is run as it is.
        example: what :func:`describe` returned.
        dtype: of the input.
        under: entered for the forward alone.

    Raises:
        RuntimeError: what the model raises, if it cannot be run so.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), random_state_kept(model):
        torch.manual_seed(0)
        call = synthesise(example, device, dtype)
        torch.manual_seed(0)
        with under or nullcontext():
            return _outputs(model, call)


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference of what two models put out, as :func:`difference` does."""
    if any(value.isnan().any() for value in one):
        return float("nan")
    if [value.shape for value in one] != [value.shape for value in other]:
        return float("inf")
    return max((_distance(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _copy_in(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in eval mode and of that type; what is cast needs no copy before."""
    anew = all(p.is_floating_point() and p.dtype != dtype for p in model.parameters())
    return cast_(clone(model, share_weights=anew).eval(), dtype)


@dataclass(frozen=True)
class TrialRun:
    """What one run of a model on a synthetic input shows.

    Attributes:
        undefined: whether an output holds a NaN.
        blank: whether all outputs are zero or NaN.
        tolerance: how far apart equal networks' outputs may be: a forward may compute in less than its weights' type.
    """

    undefined: bool
    blank: bool
    tolerance: float


def trial_run(model: nn.Module, example: Mapping[str, Any], dtype: torch.dtype, *, copies: bool = True) -> TrialRun:
    """Run a copy of ``model`` once, in eval mode, on the input that :func:`difference` makes.

    Args:
        model: left as it is, with the random state.
        example: what :func:`describe` returned.
        dtype: of the weights and the input.
        copies: without, the model is run as it is, and may keep what its forward leaves behind.

    Raises:
        RuntimeError: what the model raises, if it cannot be run so.
    """
    seen = ComputedTypes()
    outputs = outputs_of(_copy_in(dtype, model) if copies else model, example, dtype, under=seen)
    return TrialRun(
        undefined=any(bool(value.isnan().any()) for value in outputs),
        blank=all(not value.nan_to_num().any() for value in outputs),
        tolerance=max(TOLERANCES[kind] for kind in {dtype, *seen.found} & TOLERANCES.keys()),
    )


class ComputedTypes(TorchDispatchMode):
    """Notes the types of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found.update(value.dtype for value in tree_leaves(result) if isinstance(value, Tensor))
        return result


@runtime_checkable
class SwitchesOff(Protocol):
    """A module that makes a model compute otherwise than its weights say, such as the ranges of fake-quantizers."""

    def switch_off_(self) -> None:
        """Let the model compute with its weights as they are."""


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy that computes with its weights alone: no norm leaves channels out, nothing is fake-quantized."""
    copied = clone(model)
    for module in copied.modules():
        restore_(module)
        if isinstance(module, SwitchesOff):
            module.switch_off_()
    return copied


@torch.no_grad()
def drop_cached_tensors_(model: nn.Module, example: Mapping[str, Any]) -> None:
    """Drop the tensors that a forward keeps in dicts or attributes, where it makes them again once they are gone.

    Args:
        model: a copy; it is run in eval mode.
        example: what :func:`describe` returned.
    """
    norms = {id(vars(norm)) for _, norm in masked_norms(model)}
    kept = [
        (holder, key)
        for module in model.modules()
        for holder in (vars(module), *(v for n, v in vars(module).items() if isinstance(v, dict) and n not in OWN))
        for key, value in holder.items()
        if isinstance(value, Tensor) and id(holder) not in norms  # what masks keep there is no cache
    ]
    if not kept:
        return
    before = [holder[key] for holder, key in kept]
    with preserved(model):
        model.eval()
        found = _made_again(model, example, kept, before)
    for (holder, key), again in zip(kept, found, strict=True):
        if again:
            _drop(model, holder, key)


OWN = frozenset(vars(nn.Module()))
"""Attributes of every module, in which parameters, buffers and hooks live."""


def _made_again(
    model: nn.Module, example: Mapping[str, Any], places: Sequence[tuple[Any, Any]], values: Sequence[Tensor]
) -> list[bool]:
    """Return which tensors the forward makes again: all are dropped together, as some may fit no others; else each."""
    for holder, key in places:
        _drop(model, holder, key)
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with random_state_kept(model):
            _outputs(model, synthesise(example, first.device, first.dtype))
        return [isinstance(holder.get(key), Tensor) for holder, key in places]
    except Exception:  # the forward cannot do without one of them
        pass
    finally:
        for (holder, key), value in zip(places, values, strict=True):
            holder[key] = value
    pairs = list(zip(places, values, strict=True))
    return [len(pairs) > 1 and _made_again(model, example, [place], [value])[0] for place, value in pairs]


def _drop(model: nn.Module, holder: Any, key: Any) -> None:
    if any(holder is vars(module) for module in model.modules()):
        holder[key] = None  # as attributes are before the first call
    else:
        del holder[key]


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    # a forward may write into its arguments
    args, kwargs = map_tensors(torch.Tensor.clone, call)
    answers = answers_of(model, model(*args, **kwargs), call)
    return [value for value in leaves_of(answers) if isinstance(value, Tensor)]


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
    a, b = a.double(), b.double()
    if not a.numel():
        return 0.0
    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max().item()
    return gap / max(1e-30, a[a.isfinite()].abs().max().item() if a.isfinite().any() else 1.0)


def cast_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put all floating-point and complex numbers of ``model`` into ``dtype``, or the complex type beside it."""
    complexes = {torch.float64: torch.complex128}.get(dtype, torch.complex64)
    return model._apply(lambda t: t.to(complexes) if t.is_complex() else t.to(dtype) if t.is_floating_point() else t)
