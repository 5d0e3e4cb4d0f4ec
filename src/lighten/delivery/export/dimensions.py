"""Open dimensions of a file's inputs, such as the batch: found by running the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH = "batch", "length"
"""What open dimensions are called."""

TRACED = 2
"""Samples that a graph is traced with: a batch of one would be taken for a constant."""

Open = list[dict[int, str]]
"""The open dimensions of each input, by index."""


def batch_size(inputs: Sequence[Tensor]) -> int | None:
    """Return the size of the first dimension of the first input that has one."""
    return next((len(x) for x in inputs if x.ndim), None)


def batched(inputs: Sequence[Tensor]) -> list[bool]:
    """Return which inputs hold a sample in each row: those with as many rows as the first."""
    size = batch_size(inputs)
    return [x.ndim > 0 and len(x) == size for x in inputs]


def with_samples(inputs: Sequence[Tensor], samples: int) -> tuple[Tensor, ...]:
    """Return ``inputs`` with that many samples, the given ones over and over."""
    return tuple(repeated(x, 0, samples) if own else x for x, own in zip(inputs, batched(inputs), strict=True))


def candidates(graph: nn.Module, inputs: Sequence[Tensor]) -> Iterator[Open]:
    """Yield what may be open, the most first; the last is the batch alone.

    The length is that of tokens, integers of shape (batch, length). It is open if the network runs on another one,
    shared by all inputs that have it: all their dimensions of that size, or the second ones alone.

    Args:
        graph: takes inputs by position.
        inputs: with ``TRACED`` samples.
    """
    batches = [{0: BATCH} if own else {} for own in batched(inputs)]
    tried: list[Open] = []
    tokens = next((x for x in inputs if x.ndim == 2 and not x.is_floating_point() and len(x) == TRACED), None)
    if tokens is not None and tokens.shape[1] > 1:
        for dimensions in (range(1, 8), range(1, 2)):
            found = [
                {**names, **_lengths(x, dimensions, tokens.shape[1])} if names else names
                for x, names in zip(inputs, batches, strict=True)
            ]
            if found not in tried and any(error_of(graph, x) is None for x in other_lengths(inputs, found)):
                tried.append(found)
    yield from tried
    yield batches


def other_lengths(inputs: Sequence[Tensor], dimensions: Open) -> list[tuple[Tensor, ...]]:
    """Return the inputs shorter and longer than they are; nothing where no length is open."""
    length = next((x.shape[d] for x, names in zip(inputs, dimensions, strict=True) for d in names if d), None)
    if length is None:
        return []
    return [_with_length(inputs, dimensions, other) for other in {max(2, length // 2), length + 3} - {length}]


def as_dynamic_shapes(dimensions: Open) -> tuple[Mapping[int, Any] | None, ...]:
    """Return open dimensions as ``torch.export`` takes them."""
    return tuple(dict.fromkeys(names, torch.export.Dim.DYNAMIC) or None for names in dimensions)


def error_of(graph: nn.Module, inputs: tuple[Tensor, ...]) -> Exception | None:
    """Return what a forward raises of these inputs."""
    try:
        with torch.no_grad():
            graph(*inputs)
    except Exception as error:  # whatever a forward raises
        return error
    return None


def repeated(x: Tensor, dimension: int, size: int) -> Tensor:
    """Return ``x`` with that size of a dimension, what is in it over and over."""
    return x.index_select(dimension, torch.arange(size, device=x.device) % x.shape[dimension])


def _lengths(x: Tensor, dimensions: range, length: int) -> dict[int, str]:
    return {d: LENGTH for d in dimensions if d < x.ndim and x.shape[d] == length}


def _with_length(inputs: Sequence[Tensor], dimensions: Open, length: int) -> tuple[Tensor, ...]:
    resized = []
    for x, names in zip(inputs, dimensions, strict=True):
        for dimension, name in names.items():
            x = repeated(x, dimension, length) if name == LENGTH else x
        resized.append(x)
    return tuple(resized)
