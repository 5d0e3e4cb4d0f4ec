"""Verification of groups and plans by trial cuts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, lowest, moved, nearby
from lighten.pruning.groups import Group, Structure
from lighten.pruning.proportions import keep_proportions
from lighten.pruning.trial import Extent, Trial

MIN_FAILURES = 3
"""How many groups of one kind must fail alone, and none pass, for the others not to be tried."""
MAX_NEARBY = 4
"""How many other widths are tried for a group whose width cannot stay."""


Done = Callable[[float], None]
"""Called with the share of the groups of which is known what becomes of them."""


def verify_groups(
    model: nn.Module, structure: Structure, trial: Trial | None = None, *, on_progress: Done = lambda done: None
) -> Structure:
    """Return ``structure`` without the groups that the forward does not let go, each frozen with the reason.

    A graph does not say whether a size in a ``view`` or a ``slice`` follows the weights or is a number in the code.
    So every group is cut on a copy with random weights, once at random channels and once at all the others, and the
    copy's outputs are compared with those of masking. Where all groups together fail, fewer are tried. Groups that
    fail alone are tried once more, tied across the equal parts into which the forward cuts them.

    Args:
        model: as traced.
        structure: of this model.
        trial: of both, where there is one already.
        on_progress: called as groups are decided upon.

    Raises:
        UserError: if the model cannot be run on an input of the example's shapes.
    """
    trial = trial or Trial(model, structure)
    passed, failed = _sift(trial, on_progress)
    frozen = _reasons(structure, failed)
    if failed:
        tied = structure.tied([structure.groups[i] for i in failed])
        if tied is not None:
            structure = keep_proportions(tied)
            passed, failed = _sift(trial.of(structure), on_progress)
            left = {layer for i in passed for layer in structure.groups[i].layers}
            before = {layer: why for layer, why in frozen.items() if layer not in left}
            frozen = {**_reasons(structure, failed), **before}
    groups = tuple(structure.groups[i] for i in sorted(passed))
    return replace(structure, groups=groups, frozen={**structure.frozen, **frozen})


def verify_plan(
    model: nn.Module,
    structure: Structure,
    candidates: Sequence[Candidate],
    removed: Sequence[Sequence[int]],
    *,
    align: int = 1,
    trial: Trial | None = None,
) -> tuple[list[list[int]], dict[str, str]]:
    """Try the very cuts of a plan: widths may meet by chance, and a forward that asks for them takes another way.

    Where they fail, the group that breaks them loses some channels more or fewer, as few as it takes, or none.

    Args:
        model: as planned.
        structure: of this model.
        candidates: its groups at the moment of choice.
        removed: channels of each group.
        align: as for :func:`~lighten.pruning.allocate.allocate`.
        trial: of the same model, where there is one already.

    Returns:
        What can be removed, and by layer why nothing is where something was to be.

    Raises:
        UserError: if that cannot be brought about.
    """
    trial = Trial(model, structure) if trial is None else trial.of(structure)
    units = _units(structure.groups)
    chosen = [list(gone) for gone in removed]
    unprunable: dict[str, str] = {}
    for _ in range(2 * len(candidates) + 1):
        why = trial.fails_with(chosen, model)
        if why is None:
            return chosen, unprunable
        at = _culprit(trial, model, candidates, chosen, units)
        which = units[at][0]
        candidate = candidates[which]
        counts = [*nearby(candidate, len(chosen[which]), align)[:MAX_NEARBY], len(candidate.gone)]
        for count in counts:
            others = moved(candidates, [len(gone) for gone in chosen], which, count)
            tried = [lowest(c, n) for c, n in zip(candidates, others, strict=True)]
            if trial.fails_with(_part(tried, candidates, units[: at + 1]), model) is None:
                break
        chosen = tried
        if count == len(candidate.gone) and count < len(removed[which]):
            unprunable |= {layer: why for i in units[at] for layer in structure.groups[i].layers}
    raise UserError(f"the groups cannot lose these channels together: {why}; ask for less, or exclude layers")


def _units(groups: Sequence[Group], some: Iterable[int] | None = None) -> list[list[int]]:
    """Return (some of) the groups by index, those together that can only be cut in proportion to each other."""
    units: dict[object, list[int]] = {}
    for which in range(len(groups)) if some is None else some:
        units.setdefault(groups[which].proportion or which, []).append(which)
    return list(units.values())


def _culprit(
    trial: Trial,
    model: nn.Module,
    candidates: Sequence[Candidate],
    removed: Sequence[Sequence[int]],
    units: Sequence[Sequence[int]],
) -> int:
    """Return a unit with which the cuts fail, and without which, and all later ones, they do not."""
    low, high = 0, len(units)
    while high - low > 1:
        middle = (low + high) // 2
        fails = trial.fails_with(_part(removed, candidates, units[:middle]), model)
        low, high = (low, middle) if fails else (middle, high)
    return low


def _part(
    removed: Sequence[Sequence[int]], candidates: Sequence[Candidate], units: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """Return the choices of the groups of these units, and for the others what is gone anyway."""
    chosen = {which for unit in units for which in unit}
    return [
        gone if which in chosen else sorted(candidate.gone)
        for which, (gone, candidate) in enumerate(zip(removed, candidates, strict=True))
    ]


def _reasons(structure: Structure, failed: Mapping[int, str]) -> dict[str, str]:
    return {layer: why for i, why in failed.items() for layer in structure.groups[i].layers}


def _sift(trial: Trial, on_progress: Done) -> tuple[list[int], dict[int, str]]:
    """Return the groups that can be cut together, and the others with the reason, by index.

    All are tried together first. Where that fails, halves are tried of what fails: whether they run, which costs
    least and mostly tells. What passes is tried together again, and only where that fails too, halves in longer trials.
    """
    passed: list[int] = [*range(len(trial.groups))]
    failed: dict[int, str] = {}
    for extent in Extent:
        if not passed or trial.fails(passed) is None:
            break
        passed, more = _halve(trial, passed, extent, on_progress)
        failed |= more
    return passed, failed


def _halve(
    trial: Trial, suspects: Sequence[int], extent: Extent, on_progress: Done
) -> tuple[list[int], dict[int, str]]:
    """Return the groups that pass together, and the others with the reason, by index.

    Halves are tried of what fails: of all kinds, then of the groups of one kind. Once some of a kind have failed alone
    and none has passed, the rest of that kind is not tried alone.

    Args:
        trial: of the model.
        suspects: groups that fail together.
        extent: of each trial.
        on_progress: as above.
    """
    groups, units = trial.groups, _units(trial.groups, suspects)
    kinds = [frozenset().union(*(_block_kind(groups[i]) for i in unit)) for unit in units]
    passed: list[int] = []
    failed: dict[int, str] = {}
    known: dict[frozenset[int], str] = {}

    def groups_of(block: Iterable[int]) -> list[int]:
        return [i for at in block for i in units[at]]

    def admit(blocks: Sequence[Sequence[int]]) -> None:
        on_progress((len(passed) + len(failed)) / len(units))
        block = [at for alike in blocks for at in alike]
        before = [at for at in failed if kinds[at] == kinds[block[0]]]
        if len(blocks) == 1 and len(before) >= MIN_FAILURES and not any(kinds[i] == kinds[block[0]] for i in passed):
            like = f"cannot be cut, like {groups[units[before[0]][0]].name}:"
            failed.update(dict.fromkeys(block, failed[before[0]].replace("cannot be cut:", like)))
            return
        tried = frozenset([*passed, *block])
        # known, where a first half has passed
        why = known.get(tried) or trial.fails_beside(groups_of(passed), groups_of(block), extent)
        if why is None:
            passed.extend(block)
            return
        known[tried] = why
        if len(block) == 1:
            failed[block[0]] = why
        elif len(blocks) > 1:
            admit(blocks[: len(blocks) // 2])
            admit(blocks[len(blocks) // 2 :])
        else:
            admit([block[: len(block) // 2]])
            admit([block[len(block) // 2 :]])

    admit([[at for at in range(len(units)) if kinds[at] == kind] for kind in dict.fromkeys(kinds)])
    return groups_of(passed), {i: why for at, why in failed.items() for i in units[at]}


def _block_kind(group: Group) -> frozenset[tuple[str, int]]:
    """Return what equal groups of repeated blocks have in common: the tensors' names, without numbers."""
    return frozenset((re.sub(r"\d+", "#", slot.tensor), slot.dim) for slot in group.positions)
