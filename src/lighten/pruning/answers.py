"""What a network puts out as its answer, apart from the state that it takes back at its next call."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from lighten.utils.inputs import Call


def answers_of(model: nn.Module, output: Any, call: Call) -> Any:
    """Return ``output`` with ``None`` in the place of state: a key-value cache, memories, an encoder's outputs.

    State is what goes by the name of an argument that the forward has and this call left to its default, or, as
    ``encoder_last_hidden_state``, by the name of such an ``encoder_outputs``. An object that is no tensor may also be
    an argument of a part of the model. The network alone reads state, so its channels may go.

    Args:
        model: has put it out.
        output: tensors in containers and dataclasses.
        call: with these arguments.
    """
    if isinstance(output, Tensor):
        return output
    own = _taken(model) - _given(model, call)
    return _without(output, own, own.union(*(_taken(part) for part in model.modules())) - set(call[1]))


def _without(output: Any, own: Set[str], inside: Set[str]) -> Any:
    if type(output) in (list, tuple):
        return type(output)(_without(value, own, inside) for value in output)
    kept = dataclasses.is_dataclass(output) and not isinstance(output, type)
    if not kept and not isinstance(output, Mapping):
        return output
    named = (
        dict(output)
        if isinstance(output, Mapping)
        else {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    )
    answers = {k: None if _is_state(k, v, own, inside) else _without(v, own, inside) for k, v in named.items()}
    changed = {name: value for name, value in answers.items() if value is not named[name]}
    if not changed:
        return output
    return dataclasses.replace(output, **changed) if kept else answers


def _is_state(name: Any, value: Any, own: Set[str], inside: Set[str]) -> bool:
    if value is None or isinstance(value, int | float | str):
        return False
    if name in own:
        return True
    if isinstance(value, Tensor | list | tuple | Mapping):
        return any(str(name).startswith(start) for one in own if (start := one.removesuffix("outputs")) != one)
    return name in inside


def _taken(module: nn.Module) -> frozenset[str]:
    """Return the names of the forward's arguments that have a default."""
    own = getattr(module.forward, "__func__", None)
    return _with_default(module.forward) if own is None else _with_default_of_class(own)


def _with_default(forward: Callable[..., Any]) -> frozenset[str]:
    try:
        parameters = inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(name for name, parameter in parameters.items() if parameter.default is not parameter.empty)


_with_default_of_class = lru_cache(maxsize=1024)(_with_default)
"""The same of a function, which all modules of a class share: looked at once."""


def _given(module: nn.Module, call: Call) -> set[str]:
    """Return the names of the arguments that a call gives."""
    try:
        return set(inspect.signature(module.forward).bind_partial(*call[0], **call[1]).arguments)
    except (TypeError, ValueError):
        return set(call[1])
