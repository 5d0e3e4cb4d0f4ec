"""The signature of a file: the names of tensors that a forward takes and returns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from lighten.errors import UserError, did_you_mean
from lighten.utils.inputs import Call

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
LOGITS = "logits"
"""What the leading output is called where the forward gives it no name."""


def named_inputs(call: Call, kind: type = Tensor) -> dict[str, Any]:
    """Return the tensors of a call by the names that a file gives them, in order.

    A lone positional tensor is ``input``, of several ``input_0`` and so on, keywords keep their names; what lies in a
    list or dict has its index or key behind that. Other values are no inputs of a file.

    Example:
        >>> import torch
        >>> list(named_inputs(((torch.zeros(1),), {"mask": [torch.zeros(1), None]})))
        ['input', 'mask_0']
    """
    args, kwargs = call
    found: dict[str, Any] = {}
    for path, leaf in tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, kind):
            keyword, first, *rest = (getattr(key, "idx", getattr(key, "key", None)) for key in path)
            root = str(first) if keyword else "input" if len(args) == 1 else f"input_{first}"
            found[_plain("_".join([root, *map(str, rest)]))] = leaf
    return found


def parameters_of(model: nn.Module, call: Call) -> dict[str, str]:
    """Return the names that positional tensors have in the forward, with those that they have in a file.

    Example:
        >>> import torch
        >>> parameters_of(nn.Bilinear(1, 1, 1), ((torch.zeros(1, 1), torch.zeros(1, 1)), {}))
        {'input1': 'input_0', 'input2': 'input_1'}
    """
    try:
        parameters = [p for p in signature(model.forward).parameters.values() if p.kind in _POSITIONAL]
    except (TypeError, ValueError):
        return {}
    named = zip(parameters, call[0], strict=False)
    lone = len(call[0]) == 1
    return {p.name: "input" if lone else f"input_{i}" for i, (p, x) in enumerate(named) if isinstance(x, Tensor)}


def named_outputs(output: Any) -> dict[str, Tensor]:
    """Return the tensors of a forward's output by name; the leading one comes first: ``logits``, else the first.

    Keys of dicts, fields of dataclasses and of named tuples are names; in a tuple or list the first is ``logits``, the
    second ``output_1``. What lies deeper has both names, such as ``boxes_0``. What is no tensor is left out.

    Raises:
        UserError: if there is no tensor in it.

    Example:
        >>> import torch
        >>> list(named_outputs((torch.zeros(1), {"box": torch.zeros(2)})))
        ['logits', 'output_1_box']
    """
    found = {LOGITS: output} if isinstance(output, Tensor) else dict(_tensors(output, "", top=True))
    if not found:
        raise UserError(
            f"the model returns {type(output).__name__} without a tensor; expected logits, or a dict of them"
        )
    return {LOGITS: found[LOGITS], **found} if LOGITS in found else found


class Graph(nn.Module):
    """A model as a file has it: tensors go in by position, tensors come out as a tuple.

    Args:
        model: what computes.
        call: an example call; its values that are no tensors are constants.
        outputs: the names of those to keep, in this order; all by default.

    Attributes:
        inputs: names, in order.
        outputs: names, in order; known after the first forward.
    """

    def __init__(self, model: nn.Module, call: Call, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, list(named_inputs(call)), list(outputs or ())
        leaves, self._spec = tree_flatten(call)
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model and return its outputs in the order of ``outputs``."""
        leaves = list(self._constants)
        for place, tensor in zip(self._places, inputs, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        found = named_outputs(self.model(*args, **kwargs))
        self.outputs = self.outputs or list(found)
        for name in self.outputs:
            if name not in found:
                raise UserError(f"outputs={name!r}: {did_you_mean(name, found)}")
        taken = {id(x) for x in inputs}
        results = []
        for name in self.outputs:  # one tensor cannot leave under two names
            result = found[name]
            results.append(result.clone() if id(result) in taken else result)
            taken.add(id(result))
        return tuple(results)


def _tensors(value: Any, name: str, *, top: bool = False) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(_plain(name), value)]
    if isinstance(value, Mapping):
        parts = [(str(key), item) for key, item in value.items()]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        parts = [(str(i), item) for i, item in enumerate(value)]
        if top:
            parts = [(LOGITS if i == "0" else f"output_{i}", item) for i, item in parts]
    else:
        return []
    return [pair for key, item in parts for pair in _tensors(item, f"{name}_{key}" if name else key)]


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
