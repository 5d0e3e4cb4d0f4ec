"""What ``foreign.py`` judges by, written without ``lighten``: differences, a network's state, plain rounding."""

import copy
import dataclasses
import hashlib
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors in nested outputs, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif dataclasses.is_dataclass(output):
        output = [getattr(output, f.name) for f in dataclasses.fields(output)]
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in tensors_of(part)]
    return []


def gap(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the greatest relative difference of two lists of tensors (L2); infinite where their shapes differ."""
    if [x.shape for x in got] != [x.shape for x in expected]:
        return float("inf")
    return max((_gap(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _gap(got: Tensor, expected: Tensor) -> float:
    if not got.numel():
        return 0.0
    if expected.is_complex():
        got, expected = torch.view_as_real(got), torch.view_as_real(expected)
    got, expected = got.double(), expected.double()
    same = (got == expected) | (got.isnan() & expected.isnan())  # infinities of masks included
    difference = torch.where(same, 0.0, got - expected).norm()
    size = expected[expected.isfinite()].norm()
    return float(difference / size.clamp_min(1e-12)) if difference else 0.0


def state_of(network: nn.Module) -> dict[str, Any]:
    """Return everything that a network holds, by path: contents of tensors, attributes, hooks, modes, containers."""
    found: dict[str, Any] = {}
    _walk("", network, found, {})
    return found


def _walk(path: str, value: Any, found: dict[str, Any], seen: dict[int, str]) -> None:
    if isinstance(value, bool | int | float | complex | str | bytes | type | None | torch.dtype | torch.device):
        found[path] = repr(value)
        return
    if id(value) in seen:
        found[path] = f"see {seen[id(value)]}"
        return
    if isinstance(value, types.MethodType):
        found[path] = (id(value.__self__), id(value.__func__))
        return
    seen[id(value)] = path
    if isinstance(value, Tensor):
        found[path] = (id(value), type(value), *_content(value), value.requires_grad, value.grad is None)
    elif isinstance(value, Mapping):
        found[path] = (type(value), list(map(repr, value)))
        for key, part in value.items():
            _walk(f"{path}[{key!r}]", part, found, seen)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        found[path] = (type(value), len(value))
        for i, part in enumerate(value):
            _walk(f"{path}[{i}]", part, found, seen)
    elif isinstance(value, types.FunctionType | types.ModuleType) or not hasattr(value, "__dict__"):
        found[path] = id(value)
    else:
        found[path] = (type(value), id(value))
        for key, part in sorted(vars(value).items()):
            _walk(f"{path}.{key}", part, found, seen)


def _content(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
        return tensor.dtype, tuple(tensor.shape)
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    digest = hashlib.sha1(raw.numpy().tobytes()).hexdigest()
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), digest


@torch.no_grad()
def rounding_error(network: nn.Module, batches: Sequence[Any], call: Callable[[nn.Module, Any], list[Tensor]]) -> float:
    """Return what it costs to round weights to 7 bits, and to 8 what each layer, norm and activation takes and gives.

    Weights have a scale a channel; ranges of tensors are the least and greatest values over ``batches``, the last of
    which is what the outputs are compared on.
    """
    rounded = copy.deepcopy(network)
    places = [m for m in rounded.modules() if not any(True for _ in m.children())]
    spans: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}

    def watch(key: tuple[nn.Module, str], x: Tensor) -> Tensor:
        low, high = spans.get(key, (torch.zeros(()), torch.zeros(())))
        spans[key] = torch.minimum(low, x.min()), torch.maximum(high, x.max())
        return x

    def round_(key: tuple[nn.Module, str], x: Tensor) -> Tensor:
        low, high = spans.get(key, (x.min(), x.max()))
        scale = ((high - low) / 255).clamp_min(1e-12)
        return ((x - low) / scale).round() * scale + low

    for change in (watch, round_):
        handles = [handle for place in places for handle in _hooked(place, change)]
        if change is round_:
            _round_weights(places)
        outputs = [call(rounded, batch) for batch in batches]
        for handle in handles:
            handle.remove()
    return gap(outputs[-1], call(network, batches[-1]))


def _hooked(place: nn.Module, change: Callable[[tuple[nn.Module, str], Tensor], Tensor]) -> list[Any]:
    def plain(x: Any) -> bool:
        return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0 and bool(x.isfinite().all())

    def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(change((place, f"input {i}"), x) if plain(x) else x for i, x in enumerate(given))

    def after(_: nn.Module, given: Any, output: Any) -> Any:
        return change((place, "output"), output) if plain(output) else output

    return [place.register_forward_pre_hook(before), place.register_forward_hook(after)]


def _round_weights(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        for name, weight in layer.named_parameters(recurse=False):
            if weight.ndim > 1 and weight.is_floating_point() and "bias" not in name:
                scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).clamp_min(1e-12) / 63
                weight.copy_((weight / scale).round() * scale)
