"""Verification of groups and plans by trial cuts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError, first_line
from lighten.pruning.allocate import Candidate, lowest, moved, nearby
from lighten.pruning.check import TrialRun, difference, drop_cached_tensors_, plain_copy, synthesise, trial_run
from lighten.pruning.cut import cut_, masked_and_cut
from lighten.pruning.groups import Group, Structure
from lighten.pruning.mask import mask_, tensors_of
from lighten.pruning.proportions import keep_proportions
from lighten.pruning.trace import source_of
from lighten.utils.clone import clone
from lighten.utils.preserve import random_state_kept

MIN_FAILURES = 3
"""How many groups of one kind must fail alone, and none pass, for the others not to be tried."""
MAX_NEARBY = 4
"""How many other widths are tried for a group whose width cannot stay."""


def verify_groups(model: nn.Module, structure: Structure) -> Structure:
    """Return ``structure`` without the groups that the forward does not let go, each frozen with the reason.

    A graph does not say whether a size in a ``view`` or a ``slice`` follows the weights or is a number in the code.
    So every group is cut on a copy with random weights, once at random channels and once at all the others, and the
    copy's outputs are compared with those of masking. Where all groups together fail, fewer are tried. Groups that
    fail alone are tried once more, tied across the equal parts into which the forward cuts them.

    Raises:
        UserError: if the model cannot be run on an input of the example's shapes.
    """
    passed, failed = _sift(model, structure)
    frozen = _reasons(structure, failed)
    if failed:
        tied = structure.tied([structure.groups[i] for i in failed])
        if tied is not None:
            structure = keep_proportions(tied)
            passed, failed = _sift(model, structure)
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
) -> tuple[list[list[int]], dict[str, str]]:
    """Try the very cuts of a plan: widths may meet by chance, and a forward that asks for them takes another way.

    Where they fail, the group that breaks them loses some channels more or fewer, as few as it takes, or none.

    Args:
        model: as planned.
        structure: of this model.
        candidates: its groups at the moment of choice.
        removed: channels of each group.
        align: as for :func:`~lighten.pruning.allocate.allocate`.

    Returns:
        What can be removed, and by layer why nothing is where something was to be.

    Raises:
        UserError: if that cannot be brought about.
    """
    trial = _Trial(model, structure)
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


def _units(groups: Sequence[Group]) -> list[list[int]]:
    """Return the groups by index, those together that can only be cut in proportion to each other."""
    units: dict[object, list[int]] = {}
    for which, group in enumerate(groups):
        units.setdefault(group.proportion or which, []).append(which)
    return list(units.values())


def _culprit(
    trial: "_Trial",
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


def _sift(model: nn.Module, structure: Structure) -> tuple[list[int], dict[int, str]]:
    """Return the groups that can be cut together, and the others with the reason, by index.

    Halves are tried of what fails, first of groups of one kind. Once some of a kind have failed alone and none has
    passed, the rest of that kind is not tried alone.
    """
    trial = _Trial(model, structure)
    units = _units(structure.groups)
    kinds = [frozenset().union(*(_block_kind(structure.groups[i]) for i in unit)) for unit in units]
    passed: list[int] = []
    failed: dict[int, str] = {}

    def groups_of(block: Iterable[int]) -> list[int]:
        return [i for at in block for i in units[at]]

    def admit(block: Sequence[int]) -> None:
        alike = [at for at in failed if kinds[at] == kinds[block[0]]]
        if len(alike) >= MIN_FAILURES and not any(kinds[at] == kinds[block[0]] for at in passed):
            like = f"cannot be cut, like {structure.groups[units[alike[0]][0]].name}:"
            failed.update(dict.fromkeys(block, failed[alike[0]].replace("cannot be cut:", like)))
            return
        why = trial.fails(groups_of([*passed, *block]))
        if why is None:
            passed.extend(block)
        elif len(block) == 1:
            failed[block[0]] = why
        else:
            admit(block[: len(block) // 2])
            admit(block[len(block) // 2 :])

    together = range(len(structure.groups))
    if not structure.groups or trial.fails(together) is None:
        return [*together], {}
    for kind in dict.fromkeys(kinds):
        admit([at for at in range(len(units)) if kinds[at] == kind])
    return groups_of(passed), {i: why for at, why in failed.items() for i in units[at]}


def _block_kind(group: Group) -> frozenset[tuple[str, int]]:
    """Return what equal groups of repeated blocks have in common: the tensors' names, without numbers."""
    return frozenset((re.sub(r"\d+", "#", slot.tensor), slot.dim) for slot in group.positions)


class _Trial:
    """A copy of the model with random weights, and two complementary choices of channels for each group."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._structure = structure
        generator = torch.Generator().manual_seed(0)
        self._model = _float_copy(model, structure.example)
        _randomise(self._model, structure, generator)
        self._choices = _choices(structure.groups, generator)
        try:
            seen = self._trial_run()
            if seen.undefined:
                self._model = _float_copy(model, structure.example)
                seen = self._trial_run()
        except Exception as error:
            raise UserError(
                f"{type(model).__name__} cannot be run on random input of the example's shapes "
                f"({first_line(error)}); give an example_input that stands for any other"
            ) from error
        if seen.undefined or seen.blank:
            raise UserError(
                f"{type(model).__name__} puts out NaN or zeros on random input of the example's shapes, so no cut can "
                "be checked; give an example_input whose values are as the network wants them"
            )
        self._tolerance = seen.tolerance
        self._train = self._training_fails(clone(self._model)) is None

    def _trial_run(self) -> TrialRun:
        return trial_run(self._model, self._structure.example, torch.float32)

    def fails(self, groups: Sequence[int]) -> str | None:
        """Return why these groups cannot be cut together, or None where they can."""
        for choice in self._choices:
            if why := self.fails_with([choice[i] if i in groups else [] for i in range(len(choice))]):
                return why
        return None

    def fails_with(self, removed: Sequence[Sequence[int]], model: nn.Module | None = None) -> str | None:
        """Return why these channels of each group cannot be cut, or None where they can; of ``model`` too if given."""
        try:
            plan = self._structure.trial(removed)
        except UserError as error:
            return f"cannot be cut: {error}"
        masked = clone(self._model)
        mask_(masked, plan)
        small = clone(masked)
        try:
            cut_(small, plan)
            # the cut one first: where a cut fails, it mostly cannot run
            gap = difference(small, masked, self._structure.example, dtype=torch.float32, copies=False)
        except Exception as error:
            return f"cannot be cut: {_message(error)}"
        if not gap <= self._tolerance:
            return "cannot be cut: the forward fixes the number or the places of its channels"
        if self._train and (why := self._training_fails(small)):
            return f"cannot be cut: {why}, in training mode"
        if model is not None:
            try:
                masked_and_cut(model, plan)
            except RuntimeError as error:
                return f"cannot be cut: {_message(error)}"
        return None

    def _training_fails(self, model: nn.Module) -> str | None:
        """Return why ``model``, which is of no use afterwards, cannot run in training mode, or None where it can."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad(), random_state_kept(model):
                args, kwargs = synthesise(self._structure.example, device, torch.float32)
                model.train()
                for norm in model.modules():
                    if isinstance(norm, nn.SyncBatchNorm):
                        norm.eval()  # in training it waits for other ranks, and this one may be alone here
                model(*args, **kwargs)
        except Exception as error:
            return _message(error)
        return None


def _float_copy(model: nn.Module, example: Mapping[str, Any]) -> nn.Module:
    """Return a copy in float32, unmasked, without what a forward has kept: it is of other weights and widths."""
    copied = plain_copy(model).float().eval()
    drop_cached_tensors_(copied, example)
    return copied


def _randomise(model: nn.Module, structure: Structure, generator: torch.Generator) -> None:
    """Give every weight a value that shows, so that no zero-initialised branch hides a wrong cut."""
    statistics = {slot.tensor for group in structure.groups for slot in group.positions if slot.role == "statistic"}
    for name, tensor in tensors_of(model).items():
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.ndim > 1:
            fan_in = max(1, tensor[0].numel())
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
        elif isinstance(tensor, nn.Parameter) or name in statistics:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def _choices(groups: Sequence[Group], generator: torch.Generator) -> list[list[list[int]]]:
    """Return two choices of channels, together all of them; groups of one width lose different numbers."""
    seen: dict[int, int] = {}
    choices: list[list[list[int]]] = [[], []]
    for group in groups:
        width, turn = group.width, seen.get(group.width, 0)
        seen[width] = turn + 1
        order = torch.randperm(width, generator=generator).tolist()
        if group.proportion:
            steps = group.proportion[1]
            at = max(1, steps // 3) * width // steps
            halves = [order[:at], order[at:]]
        elif width == 2:  # one goes here or there
            halves = [order[:1], []] if turn % 2 else [[], order[:1]]
        else:
            at = 1 + (turn + width // 3) % (width - 1)
            halves = [order[:at], order[at:]]
        for choice, half in zip(choices, halves, strict=True):
            choice.append(half)
    return choices


def _message(error: BaseException) -> str:
    source = source_of(error)
    return f"{first_line(error)} ({source})" if source else first_line(error)
