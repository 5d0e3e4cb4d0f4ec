"""Trial cuts of a model, compared with its masked copy."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError, first_line
from lighten.pruning.check import (
    TrialRun,
    cast_,
    distance,
    drop_cached_tensors_,
    outputs_of,
    plain_copy,
    synthesise,
    trial_run,
)
from lighten.pruning.cut import cut_, masked_and_cut
from lighten.pruning.groups import Group, Structure
from lighten.pruning.mask import mask_, masked
from lighten.pruning.parts import source_of
from lighten.pruning.plan import Plan
from lighten.pruning.tensors import randomise_
from lighten.utils.clone import clone
from lighten.utils.preserve import Snapshot, random_state_kept


class Extent(Enum):
    """How far a trial goes: the cut copy runs, puts out what the masked one does, and runs in training mode too."""

    RUNS = 0
    EQUALS = 1
    TRAINS = 2


class Trial:
    """Two copies of the model with random weights, and two complementary choices of channels for each group.

    One copy is masked and one is cut, and after each trial both are what they were. They lie in the same memory.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._structure = structure
        generator = torch.Generator().manual_seed(0)
        copied = _float_copy(model, structure.example)
        statistics = {slot.tensor for group in structure.groups for slot in group.positions if slot.role == "statistic"}
        randomise_(copied, statistics, generator)
        self._drawn = generator.get_state()
        self._choices = _choices(structure.groups, generator)
        self._dtypes = [torch.float32, torch.float64]
        self._tolerances: dict[torch.dtype, float] = {}
        self._take(copied)
        try:
            seen = self._trial_run()
            if seen.undefined:
                self._take(_float_copy(model, structure.example))
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
        self._tolerances[torch.float32] = seen.tolerance
        with self._restored():
            self._train = self._training_fails(torch.float32) is None

    @property
    def groups(self) -> Sequence[Group]:
        """What is tried."""
        return self._structure.groups

    def of(self, structure: Structure) -> "Trial":
        """Return a trial of other groups of the same model, on the same copies."""
        other = copy.copy(self)
        other._structure = structure
        generator = torch.Generator()
        generator.set_state(self._drawn)
        other._choices = _choices(structure.groups, generator)
        return other

    def fails(self, groups: Sequence[int]) -> str | None:
        """Return why these groups cannot be cut together, or None where they can."""
        for choice in self._choices:
            if why := self.fails_with(_only(choice, groups)):
                return why
        return None

    def fails_beside(self, others: Sequence[int], groups: Sequence[int], extent: Extent) -> str | None:
        """Return why ``groups`` cannot be cut beside ``others``; one choice for each is enough for short trials."""
        if extent is Extent.TRAINS:
            return self.fails([*others, *groups])
        left = set(groups)
        for choice in self._choices:
            if any(choice[i] for i in left):
                if why := self.fails_with(_only(choice, [*others, *groups]), extent=extent):
                    return why
                left -= {i for i in left if choice[i]}
        return None

    def fails_with(
        self,
        removed: Sequence[Sequence[int]],
        model: nn.Module | None = None,
        *,
        extent: Extent = Extent.TRAINS,
    ) -> str | None:
        """Return why these channels of each group cannot be cut, or None where they can; of ``model`` too if given."""
        try:
            plan = self._structure.trial(removed)
        except UserError as error:
            return f"cannot be cut: {error}"
        if why := self._cannot_run(plan) if extent is Extent.RUNS else self._differs(plan, extent):
            return f"cannot be cut: {why}"
        if model is not None:
            try:
                masked_and_cut(model, plan, holds_at_random=extent is not Extent.RUNS)
            except RuntimeError as error:
                return f"cannot be cut: {_message(error)}"
        return None

    def _take(self, copied: nn.Module) -> None:
        self._masked, self._small = copied, clone(copied, share_weights=True)
        self._found = [Snapshot(each, weights=False) for each in (self._masked, self._small)]

    @contextmanager
    def _restored(self) -> Iterator[None]:
        try:
            yield
        finally:
            for found in self._found:
                found.restore()

    def _trial_run(self) -> TrialRun:
        with self._restored():
            return trial_run(self._small, self._structure.example, torch.float32, copies=False)

    def _cannot_run(self, plan: Plan) -> str | None:
        with self._restored():
            try:
                cut_(self._small, plan)
                outputs_of(self._small, plan.example, torch.float32)
            except Exception as error:
                return _message(error)
        return None

    def _differs(self, plan: Plan, extent: Extent) -> str | None:
        """Return why the cut copy is not what the masked one is.

        Where they differ in float32, float64 tells: what a forward selects by its values may depend on rounding.
        """
        for dtype in self._dtypes:
            try:
                tolerance = self._tolerance(dtype)
            except Exception:  # this forward is of float32 alone
                break
            with self._restored():
                try:
                    gap = self._gap(plan, dtype)
                except Exception as error:
                    return _message(error)
                if gap <= tolerance:
                    self._dtypes = self._dtypes[self._dtypes.index(dtype) :]
                    why = self._training_fails(dtype) if self._train and extent is Extent.TRAINS else None
                    return why and f"{why}, in training mode"
        return "the forward fixes the number or the places of its channels"

    def _gap(self, plan: Plan, dtype: torch.dtype) -> float:
        cut_(self._small, plan)  # runs first: where a cut fails, it mostly cannot run
        outputs = outputs_of(cast_(self._small, dtype), self._structure.example, dtype)
        if dtype == torch.float32:
            for tensor in {id(tensor): tensor for tensor, _, _ in masked(self._masked, plan)}.values():
                tensor.data = tensor.data.clone()
        mask_(cast_(self._masked, dtype), plan)
        return distance(outputs, outputs_of(self._masked, self._structure.example, dtype))

    def _tolerance(self, dtype: torch.dtype) -> float:
        if dtype not in self._tolerances:
            with self._restored():
                self._tolerances[dtype] = trial_run(self._masked, self._structure.example, dtype).tolerance
        return self._tolerances[dtype]

    def _training_fails(self, dtype: torch.dtype) -> str | None:
        """Return why the copy that is cut cannot run in training mode, or None where it can."""
        model = self._small
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad(), random_state_kept(model):
                args, kwargs = synthesise(self._structure.example, device, dtype)
                model.train()
                for norm in model.modules():
                    if isinstance(norm, nn.SyncBatchNorm):
                        norm.eval()  # in training it waits for other ranks, and this one may be alone here
                model(*args, **kwargs)
        except Exception as error:
            return _message(error)
        return None


def _only(choice: Sequence[Sequence[int]], groups: Iterable[int]) -> list[Sequence[int]]:
    wanted = set(groups)
    return [channels if i in wanted else [] for i, channels in enumerate(choice)]


def _float_copy(model: nn.Module, example: Mapping[str, Any]) -> nn.Module:
    """Return a copy in float32, unmasked, without what a forward has kept: it is of other weights and widths."""
    copied = plain_copy(model).float().eval()
    drop_cached_tensors_(copied, example)
    return copied


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
