"""Descriptions of example inputs: shapes, types and ranges in JSON types, from which calls are made again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lighten.errors import UserError
from lighten.utils.inputs import Call


def describe(call: Call) -> dict[str, Any]:
    """Return JSON-able shapes, types and, for integers, ranges of a call's arguments.

    Raises:
        UserError: if an argument is neither a tensor nor a plain value, nor a container of such.
    """
    return {"args": [_describe(value) for value in call[0]], "kwargs": {k: _describe(v) for k, v in call[1].items()}}


def synthesise(description: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Call:
    """Return a call of that description: normal floats of ``dtype``, integers drawn within the range that was seen."""
    args = tuple(_synthesise(value, device, dtype) for value in description["args"])
    return args, {name: _synthesise(value, device, dtype) for name, value in description["kwargs"].items()}


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        described: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if value.is_meta:  # no values to read a range from: its shape and type are all there is
            return described
        if not value.is_floating_point() and not value.is_complex() and value.numel():
            described["range"] = [int(value.min()), int(value.max())]
        elif value.is_floating_point() and value.numel() and value.min() >= 0 < value.max():
            low, high = float(value.min()), float(value.max())  # a logarithm may be taken of it
            described["span"] = [low, high] if low < high else [low / 2, 2 * low]
        return described
    if isinstance(value, tuple | list):
        return {"sequence": type(value).__name__, "items": [_describe(v) for v in value]}
    if isinstance(value, Mapping):
        return {"mapping": {str(k): _describe(v) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise UserError(
        f"the example input holds a {type(value).__name__}, expected tensors and plain values; leave it to a default"
    )


def _synthesise(described: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    if "value" in described:
        return described["value"]
    if "mapping" in described:
        return {name: _synthesise(value, device, dtype) for name, value in described["mapping"].items()}
    if "sequence" in described:
        items = [_synthesise(value, device, dtype) for value in described["items"]]
        return tuple(items) if described["sequence"] == "tuple" else items
    if "span" in described:
        low, high = described["span"]
        return (low + (high - low) * torch.rand(described["shape"])).to(device, dtype)
    if "range" not in described:
        return torch.randn(described["shape"]).to(device, dtype)
    low, high = described["range"]
    return torch.randint(low, high + 1, described["shape"]).to(device, getattr(torch, described["dtype"]))


def ranges(places: Sequence[int]) -> str:
    """Return ``0-3,8`` for [0, 1, 2, 3, 8]."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:3]]
    return ",".join(shown + ["…"] * (len(runs) > 3))
