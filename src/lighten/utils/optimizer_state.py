"""Optimizer state that follows when parameters lose channels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from lighten.errors import UserError
from lighten.utils.layout import laid_as

SHARDED = ("ZeroRedundancyOptimizer", "PostLocalSGDOptimizer", "DistributedOptimizer")
"""Optimizers of torch that keep more of parameters than a state for each."""


@dataclass(frozen=True)
class Kept:
    """What stays of a parameter.

    Attributes:
        shape: before the cut.
        along: dimensions that lose channels, and the positions that stay.
    """

    shape: tuple[int, ...]
    along: Sequence[tuple[int, Tensor]]


Slices = Mapping[Any, Kept]
"""What stays of the parameters that were cut."""


@torch.no_grad()
def slice_state_(optimizers: Iterable[Optimizer], slices: Slices) -> None:
    """Cut what optimizers keep of each parameter, in place, as the parameter was.

    Momentum and moments lose the same channels; step counts, and rows and columns of factored moments (Shazeer & Stern
    2018, arXiv 1804.04235) where they have none of the dimension, stay.

    Args:
        optimizers: of the parameters, among others.
        slices: of parameters that are cut already.

    Raises:
        UserError: naming the optimizer whose state cannot be cut; nothing is changed then.
    """
    optimizers = list(optimizers)
    check_state(optimizers, {parameter: kept.shape for parameter, kept in slices.items()})
    for optimizer in optimizers:
        for parameter in [p for p in optimizer.state if p in slices]:
            kept, state = slices[parameter], optimizer.state[parameter]
            for key, value in state.items():
                state[key] = tree_map(lambda v, kept=kept: _cut(v, kept) if isinstance(v, Tensor) else v, value)


def check_state(optimizers: Iterable[Optimizer], shapes: Mapping[Any, Sequence[int]]) -> None:
    """Check that what optimizers keep of parameters can be cut with them.

    Args:
        optimizers: after a step; before one, what they will keep is not known.
        shapes: of the parameters that may be cut, as their state has them.

    Raises:
        UserError: naming the optimizer and what it keeps.
    """
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if name in SHARDED:
            raise UserError(f"live=True: {name} keeps parameters in shards; use another optimizer, or live=False")
        for parameter, state in optimizer.state.items():
            shape = shapes.get(parameter, ())
            for key, value in state.items() if parameter in shapes and isinstance(state, Mapping) else ():
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor) and not _follows(leaf, shape):
                        raise UserError(
                            f"live=True: the optimizer {name} keeps {key!r} of shape {tuple(leaf.shape)} for a "
                            f"parameter of shape {shape}, which cannot be cut with it; use another optimizer, or "
                            "live=False"
                        )


def optimizers_of(module: nn.Module, known: Iterable[Optimizer]) -> list[Optimizer]:
    """Return the known optimizers, and those that ``module`` itself holds as attributes."""
    held = [value for value in vars(module).values() if isinstance(value, Optimizer)]
    return list({id(optimizer): optimizer for optimizer in (*known, *held)}.values())


def _follows(state: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a tensor is a number, or has the parameter's dimensions, some of them of one place."""
    if state.numel() == 1:
        return True
    return state.ndim == len(shape) and all(a in (b, 1) for a, b in zip(state.shape, shape, strict=True))


def _cut(state: Tensor, kept: Kept) -> Tensor:
    found = state
    for dim, places in kept.along:
        if state.ndim == len(kept.shape) and state.shape[dim] == kept.shape[dim]:
            found = found.index_select(dim, places.to(state.device))
    return laid_as(found, state)
