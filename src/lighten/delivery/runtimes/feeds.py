"""Helpers of the runners: calls as arrays, batches in pieces, errors in one line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lighten.delivery.runtimes.signature import named_inputs
from lighten.errors import UserError, last_line
from lighten.utils.inputs import Call


def by_name(model: str, inputs: Sequence[str], call: Call) -> dict[str, np.ndarray]:
    """Return a call as arrays by the names that a file gives its inputs; positional ones in the file's order.

    Raises:
        UserError: if names or their number do not fit.
    """
    args, kwargs = tree_map(_array, call)
    positional, named = _arrays(args), named_inputs(((), kwargs), np.ndarray)
    given = {**dict(zip(inputs, positional, strict=False)), **named}
    if len(positional) > len(inputs) or set(given) != set(inputs):
        raise UserError(
            f"{model}: takes {', '.join(inputs)}, "
            f"but a batch holds {len(positional)} unnamed input(s) and {', '.join(named) or 'no named one'}"
        )
    return {name: np.ascontiguousarray(value) for name, value in given.items()}


def by_position(model: str, shapes: Sequence[Sequence[int]], call: Call) -> list[np.ndarray]:
    """Return a call as arrays in their order, tokens filled up to the length that a file has.

    Raises:
        UserError: if their number does not fit.
    """
    given = _arrays(tree_map(_array, call))
    if len(given) != len(shapes):
        raise UserError(f"{model}: takes {len(shapes)} input(s), but a batch holds {len(given)}")
    return [_filled(np.ascontiguousarray(value), shape) for value, shape in zip(given, shapes, strict=True)]


def fixed_batch(shapes: Sequence[Sequence[Any]]) -> int | None:
    """Return how many samples a file takes a call; ``None`` if it takes any number.

    Args:
        shapes: of its inputs; sizes that are no integers are open.

    Example:
        >>> fixed_batch([["batch", 3], [5]]), fixed_batch([[4, 3], [4, "length"]])
        (None, 4)
    """
    first = [shape[0] for shape in shapes if len(shape)]
    return int(first[0]) if first and all(isinstance(size, int) for size in first) else None


def by_name_in_pieces(
    feed: dict[str, np.ndarray], size: int | None, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Run a batch as it is, or in pieces where a file takes ``size`` samples a call."""
    if size is None or all(len(x) == size for x in feed.values() if x.ndim):
        return run(feed)
    return piece_by_piece(list(feed.values()), size, lambda piece: run(dict(zip(feed, piece, strict=True))))


def piece_by_piece(
    feed: Sequence[np.ndarray], size: int, run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Run batches of ``size`` and put their outputs together; the last one is filled up with its last sample."""
    samples = len(feed[0])
    pieces = []
    for start in range(0, samples, size):
        piece = [x[start : start + size] if x.ndim else x for x in feed]
        short = size - len(piece[0])
        pieces.append(run([np.concatenate([x, x[-1:].repeat(short, 0)]) for x in piece] if short else piece))
    return [np.concatenate(parts)[:samples] if parts[0].ndim else parts[0] for parts in zip(*pieces, strict=True)]


@contextmanager
def readable(path: Path, runtime: str) -> Iterator[None]:
    """Turn whatever a runtime raises of a file into one line."""
    try:
        yield
    except Exception as error:  # runtimes' exceptions share no base class
        reason = last_line(error)
        raise UserError(f"{path}: {runtime} cannot read it ({reason}); export it again") from None


@contextmanager
def runnable(model: str) -> Iterator[None]:
    """Turn whatever a runtime raises of a batch into one line."""
    try:
        yield
    except Exception as error:  # runtimes' exceptions share no base class
        reason = last_line(error)
        shape = "give it the shape that it was exported with"
        raise UserError(f"{model}: cannot run this batch ({reason}); {shape}") from None


def no_fact(model: str, name: str) -> UserError:
    """Return the error of a file into which nobody wrote ``name``."""
    return UserError(f"{model}: does not say its {name}, and they cannot be read off it; write it with lighten.export")


def _arrays(tree: Any) -> list[np.ndarray]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, np.ndarray)]


def _filled(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return tokens (batch, length) filled up with zeros, which the mask leaves out, to the length that a file has."""
    if x.dtype.kind != "i" or x.ndim != 2 or len(shape) != 2 or x.shape[1] >= shape[1]:
        return x
    return np.pad(x, ((0, 0), (0, int(shape[1]) - x.shape[1])))


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
