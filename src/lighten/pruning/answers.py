"""What a network puts out as its answer, apart from the state that it takes back at its next call."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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
    own = _taken(model) - _given(model, call)
    return _without(output, own, own.union(*(_taken(part) for part in model.modules())) - set(call[1]))


def _without(output: Any, own: set[str], inside: set[str]) -> Any:
    if isinstance(output, Mapping) or (dataclasses.is_dataclass(output) and not isinstance(output, type)):
        named = (
            dict(output) if isinstance(output, Mapping) else {f.name: getattr(output, f.name) for f in _fields(output)}
        )
        state = {name for name, value in named.items() if value is not None and _is_state(name, value, own, inside)}
        if state and dataclasses.is_dataclass(output):
            return dataclasses.replace(output, **dict.fromkeys(state))
        return {name: None if name in state else value for name, value in named.items()} if state else output
    if type(output) in (list, tuple):
        return type(output)(_without(value, own, inside) for value in output)
    return output


def _fields(output: Any) -> tuple["dataclasses.Field[Any]", ...]:
    return dataclasses.fields(output)


def _is_state(name: Any, value: Any, own: set[str], inside: set[str]) -> bool:
    if name in own:
        return True
    if all(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
        return any(name.startswith(prefix) for taken in own if (prefix := taken.removesuffix("outputs")) != taken)
    return name in inside and not isinstance(value, int | float | str)


def _taken(module: nn.Module) -> set[str]:
    """Return the names of the forward's arguments that have a default."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return set()
    return {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}


def _given(module: nn.Module, call: Call) -> set[str]:
    """Return the names of the arguments that a call gives."""
    try:
        return set(inspect.signature(module.forward).bind_partial(*call[0], **call[1]).arguments)
    except (TypeError, ValueError):
        return set(call[1])
