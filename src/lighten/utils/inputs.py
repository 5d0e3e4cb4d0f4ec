"""Example inputs: a tensor, a tuple of positionals or a dict of keywords, handled alike."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.export
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves

from lighten.errors import UserError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one forward call."""

ExampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the public functions accept as ``example_input``."""

Shape = Sequence[int] | Mapping[str, Any]
"""What ``input_shape`` says: sizes of an image or text; of a table ``{"numbers": count, "categories": [size, …]}``."""


def as_call(example_input: ExampleInput) -> Call:
    """Return ``(args, kwargs)`` for a tensor, a tuple (positional) or a mapping (keywords)."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple):
        return example_input, {}
    return (example_input,), {}


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``fn`` to every tensor in nested tuples, lists and mappings."""
    return torch.utils._pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, tree)


def leaves_of(output: Any) -> list[Any]:
    """Return what a forward has put out, one by one, dataclasses that PyTorch does not know yet included.

    Those are made known to it, so that it can trace the model too.
    """
    while unknown := [type(x) for x in tree_leaves(output) if is_dataclass(x) and type(x) not in SUPPORTED_NODES]:
        for kind in dict.fromkeys(unknown):
            torch.export.register_dataclass(kind)
    return tree_leaves(output)


def example_of(input_shape: Shape, samples: int = 2) -> ExampleInput:
    """Return zeros such as a model takes: images for (channels, height, width), tokens for (length,), rows for tables.

    Tokens are ``input_ids`` and ``attention_mask``, int64 (samples, length); nothing is masked. Rows of a table are
    ``numbers``, float32 (samples, numbers), and ``categories``, int64 (samples, columns), where it has them.
    """
    if isinstance(input_shape, Mapping):
        sizes = {"numbers": int(input_shape["numbers"]), "categories": len(input_shape["categories"])}
        types = {"numbers": torch.float32, "categories": torch.int64}
        return {name: torch.zeros(samples, size, dtype=types[name]) for name, size in sizes.items() if size}
    if len(input_shape) != 1:
        return torch.zeros(samples, *input_shape)
    ids = torch.zeros(samples, *input_shape, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits_of(output: Any, which: str | int | None = None, *, setting: str = "outputs") -> Tensor:
    """Return the logits in what a model returns.

    A tensor is what it is. Of several values ``which`` says the name or position; without it only what is certain is
    taken: ``logits``, or the one value that is a tensor.

    Args:
        output: what the model returned.
        which: of several values.
        setting: how messages call ``which``.

    Raises:
        UserError: if it is not certain which is meant, or it is not there, or no tensor.

    Example:
        >>> logits_of({"kind": torch.ones(1), "box": torch.zeros(1)}, "kind")
        tensor([1.])
    """
    if isinstance(output, Tensor):
        return output
    if which is None and isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    values = _values(output)
    tensors = [name for name, value in values.items() if isinstance(value, Tensor)]
    if which is None:
        if "logits" in tensors or len(tensors) == 1:
            return values["logits" if "logits" in tensors else tensors[0]]
        found = ", ".join(map(repr, tensors))
        if not found:
            raise UserError(f"the model returns {type(output).__name__}, expected logits, or an output with 'logits'")
        raise UserError(
            f"the model returns several tensors ({found}), and nothing says which one is meant; "
            f"name it, as in {setting}={tensors[0]!r}"
        )
    if isinstance(which, int) and which not in values:
        which = dict(enumerate(values)).get(which, which)
    if which not in tensors:
        raise UserError(
            f"{setting}={which!r}, and the model returns {', '.join(map(repr, tensors))}; name one of these"
        )
    return values[which]


def _values(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return dict(enumerate(output)) if isinstance(output, list | tuple) else {}


def run(module: nn.Module, call: Call) -> Any:
    """Call ``module``.

    Raises:
        UserError: if its forward does not take these arguments, or one of them is no tensor but an array.
    """
    args, kwargs = call
    try:
        return module(*args, **kwargs)
    except (TypeError, AttributeError):
        check_call(module, call)
        raise


def check_call(module: nn.Module, call: Call) -> None:
    """Raise ``UserError`` if ``module.forward`` does not take these arguments, or one of them is a NumPy array."""
    args, kwargs = call
    name = type(module).__name__
    if any(isinstance(value, np.ndarray) for value in torch.utils._pytree.tree_leaves(call)):
        raise UserError(
            f"the batch gives {name} a NumPy array, expected a tensor; convert it with torch.from_numpy in the data set"
        )
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        given = [f"{len(args)} by position"] * bool(args) + [repr(key) for key in kwargs]
        example = 'batch={"image": "input", "target": "label"}' if kwargs else 'batch=("input", "input", "label")'
        raise UserError(
            f"{name}.forward takes ({', '.join(signature.parameters)}), and the batch gives it "
            f"{', '.join(given) or 'nothing'}; say what the parts of a batch are, as in {example}"
        ) from None
