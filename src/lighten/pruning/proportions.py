"""Groups whose widths a forward takes to be in proportion, such as a hidden width and its heads."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lighten.pruning.groups import Group, Structure

ROUNDS = 4
"""How many times more groups are put together, at most."""
DRAWS = 2
"""Random choices of widths in each round."""


def keep_proportions(structure: Structure) -> Structure:
    """Return ``structure`` with the groups named that can only lose channels in proportion.

    A forward may compute a head's size as its input's width over the number of heads. Channels of both may go, any of
    them, if as large a share of the one goes as of the other. Such groups are found by drawing widths at random, and
    looking at which sizes that the forward computes are then not what they must be. Where that does not help, groups
    stay as they are: whether they can be cut, a trial shows.
    """
    groups = structure.groups
    sets = list(range(len(groups)))
    owner = torch.full((structure.labels,), -1)
    for which, group in enumerate(groups):
        owner[group.roots] = which
    generator = torch.Generator().manual_seed(0)
    for _ in range(ROUNDS):
        wrong = [found for _ in range(DRAWS) for found in _wrong(structure, sets, owner, generator)]
        before = list(sets)
        for found in wrong:
            _join(sets, found)
        if sets == before:
            break
    hopeless = {sets[which] for found in _wrong(structure, sets, owner, generator) for which in found}
    members = {name: [i for i, of in enumerate(sets) if of == name] for name in set(sets) - hopeless}
    named = list(groups)
    for name, those in members.items():
        steps = _steps(groups[i] for i in those)
        if len(those) > 1 and steps > 1:
            for i in those:
                named[i] = replace(groups[i], proportion=(groups[name].name, steps))
    return replace(structure, groups=tuple(named))


def _wrong(structure: Structure, sets: Sequence[int], owner: Tensor, generator: torch.Generator) -> Iterable[list[int]]:
    """Yield the groups that the sizes count which are not right after a random cut."""
    removed: list[list[int]] = [[] for _ in sets]
    for name in set(sets):
        those = [i for i, of in enumerate(sets) if of == name]
        steps = _steps(structure.groups[i] for i in those)
        taken = int(torch.randint(1, steps, (), generator=generator)) if steps > 1 else 0
        for i in those:
            removed[i] = _draw(structure.groups[i], taken / steps, generator)
    for reads in structure.read.changes(structure.marked(removed))[1]:
        found = torch.unique(owner[structure.read.channels(reads)]).tolist()
        yield [which for which in found if which >= 0]


def _steps(groups: Iterable[Group]) -> int:
    """Return into how many equal steps the widths of all these groups can be divided."""
    return math.gcd(*(group.proportion[1] if group.proportion else group.width for group in groups))


def _draw(group: Group, share: float, generator: torch.Generator) -> list[int]:
    return torch.randperm(group.width, generator=generator)[: round(share * group.width)].tolist()


def _join(sets: list[int], found: Sequence[int]) -> None:
    names = {sets[which] for which in found}
    for which, name in enumerate(sets):
        if name in names:
            sets[which] = min(names)
