"""Attributes that follow a cut, such as numbers of heads: what a forward reads as a size changes with the channels."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.tags import Formula


@dataclass(frozen=True)
class SizeRead:
    """A size that an operator is given, and the channels that it counts.

    Attributes:
        formula: where it comes from.
        rows: the channels at each place along what it counts, (size, …); a place is gone when all of its channels are.
        backwards: whether the size is counted from the end, as a negative number.
    """

    formula: Formula
    rows: Tensor
    backwards: bool = False

    def needed(self, gone: Tensor) -> int:
        """Return what it must be without the channels that ``gone`` marks."""
        left = _left(self.rows, gone)
        return -left if self.backwards else left


def _left(rows: Tensor, gone: Tensor) -> int:
    """Return how many places are left; where all are of one channel, as in what is picked of it, another takes over."""
    return len(rows) if bool((rows == rows[:1]).all()) else int((~gone[rows].all(1)).sum())


@dataclass(frozen=True)
class Sizes:
    """All sizes that a forward computes from attributes and shapes.

    Attributes:
        reads: where operators are given them.
        shapes: the channels along each dimension that a formula speaks of, by its name there, (size, …).
        values: of the attributes now.
    """

    reads: tuple[SizeRead, ...]
    shapes: Mapping[str, Tensor]
    values: Mapping[str, int]

    def known(self) -> "Sizes":
        """Return what is right as long as no channel goes: a size that is not has not been followed."""
        present = {**self.values, **{name: len(rows) for name, rows in self.shapes.items()}}
        right = [
            read
            for read in self.reads
            if read.formula.names <= present.keys()
            and read.formula.value(present) == (-len(read.rows) if read.backwards else len(read.rows))
        ]
        return replace(self, reads=tuple(right))

    def changes(self, gone: Tensor) -> tuple[dict[str, tuple[int, int]], list[tuple[SizeRead, ...]]]:
        """Return what becomes of attributes without the channels that ``gone`` marks, and what cannot be.

        Returns:
            The attributes that change, before and after; and the reads that then are not what they must be, each with
            those that say otherwise.
        """
        known = {name: _left(rows, gone) for name, rows in self.shapes.items()}
        first: dict[str, SizeRead] = {}
        wrong: list[tuple[SizeRead, ...]] = []
        others: list[tuple[SizeRead, int]] = []
        for read in self.reads:
            need, name = read.needed(gone), read.formula.operation
            if read.formula.parts or name in self.shapes:
                others.append((read, need))
            elif known.setdefault(name, need) != need:
                wrong.append((first[name], read))
            else:
                first.setdefault(name, read)
        for read, need in others:
            if not self._infer(read.formula, need, known):
                wrong.append((read, *(first[name] for name in read.formula.names if name in first)))
        changed = {name: (self.values[name], known[name]) for name in known.keys() & self.values.keys()}
        return {name: pair for name, pair in sorted(changed.items()) if pair[0] != pair[1]}, wrong

    def channels(self, reads: Iterable[SizeRead]) -> Tensor:
        """Return the labels of all channels that these sizes, and those they are computed from, count."""
        found = [read.rows for read in reads]
        found += [self.shapes[name] for read in reads for name in read.formula.names if name in self.shapes]
        return torch.unique(torch.cat([rows.flatten() for rows in found]))

    def _infer(self, formula: Formula, need: int, known: dict[str, int]) -> bool:
        """Say whether a formula gives ``need``, having found the one attribute that nothing else says."""
        names = formula.names
        present = {name: known.get(name, self.values.get(name, 0)) for name in names}
        if formula.value(present) == need:
            return True
        for name in sorted(names - known.keys(), key=lambda n: -self.values[n]):
            for value in range(self.values[name] - 1, 0, -1):
                if formula.value({**present, name: value}) == need:
                    known[name] = value
                    return True
        return False


def set_attributes_(model: nn.Module, attributes: Mapping[str, tuple[int, int]]) -> None:
    """Give attributes of modules their values after a cut; objects and containers that hold them are copied before."""
    for name, (_, after) in attributes.items():
        module, (key, *path) = _place(model, name)
        vars(module)[key] = _with(vars(module)[key], path, after)


def check_attributes(model: nn.Module, attributes: Mapping[str, tuple[int, int]]) -> None:
    """Check that attributes of modules have the values that a plan has seen.

    Raises:
        UserError: naming the first that has not.
    """
    for name, (before, _) in attributes.items():
        module, path = _place(model, name)
        held: Any = vars(module)
        for key in path:
            if isinstance(held, list | tuple):
                held = held[int(key)] if int(key) < len(held) else None
            else:
                held = (held if isinstance(held, dict) else getattr(held, "__dict__", {})).get(key)
        if held != before:
            raise UserError(
                f"the model does not match the plan: {name} is {held!r}, expected {before}; give the model that was "
                "planned, before it is cut"
            )


def _place(model: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
    """Return the module that holds an attribute, and the way from there: a name, then names or indices in it."""
    module, path = model, name.split(".")
    while len(path) > 1 and path[0] in module._modules and module._modules[path[0]] is not None:
        module, path = module._modules[path[0]], path[1:]  # type: ignore[assignment]
    return module, path


def _with(value: Any, path: list[str], after: int) -> Any:
    if not path:
        return after
    key, *rest = path
    if isinstance(value, list | tuple):
        return type(value)(_with(item, rest, after) if at == int(key) else item for at, item in enumerate(value))
    copied = copy.copy(value)
    if isinstance(copied, dict):
        copied[key] = _with(value[key], rest, after)
        return copied
    vars(copied)[key] = _with(vars(value)[key], rest, after)
    return copied
