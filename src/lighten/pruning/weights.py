"""Parameters and buffers as a graph hands them around."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer as the graph hands it around, or a view of it: transposed, or a stretch of it.

    ``strides`` and ``offset`` are those of the view, in a parameter of shape ``whole`` that is stored row by row.
    """

    name: str
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...]) -> "Weight":
        """Return a parameter as it is."""
        return cls(name, shape, shape, _strides(shape))

    @property
    def others(self) -> list[str]:
        """Names of the further parameters that it is computed from."""
        return []

    @property
    def picked(self) -> bool:
        """Whether these are matrices that were picked from a parameter, along its first dimension."""
        return len(self.shape) == len(self.whole) == 3 and self.strides[0] == 0

    def pick(self, count: int) -> "Weight":
        """Return ``count`` matrices of this parameter of several: whichever they are, channels lie in them alike."""
        return replace(self, shape=(count, *self.shape[1:]), strides=(0, *self.strides[1:]))

    def stretch(self, dim: int) -> tuple[int, int] | None:
        """Return the parameter's dimension that ``dim`` runs along, and where it starts there; None if along none."""
        if self.shape == self.whole and self.strides == _strides(self.whole):
            return dim, 0
        if 0 in self.whole:
            return None
        starts = torch.unravel_index(torch.tensor(self.offset), self.whole)
        for base, (size, stride) in enumerate(zip(self.whole, _strides(self.whole), strict=True)):
            if size > 1 and stride == self.strides[dim] and int(starts[base]) + self.shape[dim] <= size:
                return base, int(starts[base])
        return None

    def viewed(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the view, or the views, that ``function`` takes of this; None if it gives something else."""
        base = torch.empty(self.whole, device="meta")
        found = function(base.as_strided(self.shape, self.strides, self.offset), *args, **kwargs)
        parts = [found] if isinstance(found, Tensor) else list(found)
        if any(part._base is not base for part in parts):
            return None
        views = [
            Weight(self.name, tuple(part.shape), self.whole, part.stride(), int(part.storage_offset()))
            for part in parts
        ]
        follows = all(n == 1 or view.stretch(dim) for view in views for dim, n in enumerate(view.shape))
        return None if not follows else views[0] if isinstance(found, Tensor) else views


@dataclass(frozen=True)
class Member:
    """What lies along a dimension of a computed weight: a dimension of a parameter or buffer.

    Attributes:
        weight: the parameter or buffer.
        dim: the dimension of it.
        times: how many of its places are one channel.
        role: as :class:`~lighten.pruning.trace.Axis` has it; None for that of a weight that is a parameter itself.
    """

    weight: Weight
    dim: int
    times: int
    role: str | None


@dataclass(frozen=True)
class Derived(Weight):
    """A weight that the forward computes, and what lies along each of its dimensions; channels stay along others."""

    members: Mapping[int, tuple[Member, ...]] = field(default_factory=dict, compare=False)

    @classmethod
    def of_members(cls, name: str, shape: tuple[int, ...], members: Mapping[int, tuple[Member, ...]]) -> "Derived":
        """Return a weight of this shape, called as its largest parameter is."""
        return cls(name, shape, shape, _strides(shape), members=members)

    @property
    def others(self) -> list[str]:
        """Names of the parameters and buffers that lie along its dimensions."""
        return [member.weight.name for members in self.members.values() for member in members]


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


COMPUTED = re.compile(r"(?:^|\.)(?:parametrizations\.\w+\.original\d*|(?:weight|bias)_(?:v|g|orig))$")
"""How PyTorch calls what it computes a layer's weight from."""


def layer_of(tensor: str) -> str:
    """Return the name of the module whose weight or bias this is, or the parameter's own name."""
    if (found := COMPUTED.search(tensor)) and found.start():
        return tensor[: found.start()]
    module, _, leaf = tensor.rpartition(".")
    return module if module and leaf in ("weight", "bias") else tensor
