"""Candidates for removal: groups with the scores of their live channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lighten.pruning.allocate import Candidate
from lighten.pruning.groups import Group, Structure
from lighten.pruning.importance import GroupScores, score_group
from lighten.pruning.plan import GroupPlan, Plan
from lighten.pruning.settings import Settings
from lighten.pruning.tensors import tensors_of


@dataclass(frozen=True)
class GroupState:
    """One group, and what was removed from it before.

    Attributes:
        group: as found in the model.
        masked: channels that were masked in the model from the start.
        absent: how many channels were cut out of the model before.
        size: channels of the group's first layer, those of other groups among them.
        row: what an earlier plan says of the group.
    """

    group: Group
    masked: tuple[int, ...]
    absent: int
    size: int
    row: GroupPlan | None = None

    @property
    def gone(self) -> frozenset[int]:
        """Channels that are removed already."""
        return frozenset(self.masked).union(self.row.removed if self.row is not None else ())

    @property
    def live(self) -> Tensor:
        """Channels that are not."""
        gone = self.gone
        return torch.tensor([i for i in range(self.group.width) if i not in gone])


def group_states(structure: Structure, after: Plan | None = None) -> list[GroupState]:
    """Return the state of each group after an earlier plan, or without one."""
    rows: Sequence[GroupPlan | None] = after.groups if after is not None else (None,) * len(structure.groups)
    return [
        GroupState(group, masked, absent, structure.sizes[_first_filter(group)], row)
        for group, masked, absent, row in zip(structure.groups, structure.gone, structure.absent, rows, strict=True)
    ]


def score_groups(
    states: Sequence[GroupState],
    model: nn.Module,
    settings: Settings,
    accumulated_gradients: Mapping[str, Tensor] | None,
) -> list[GroupScores]:
    """Return the scores of each group's live channels; where nothing new is known, those of the earlier plan."""
    tensors = tensors_of(model)
    return [
        _recalled(
            state,
            score_group(
                state.group, tensors, state.live, score=settings.score, rate_norm=settings.rate_norm,
                accumulated_gradients=accumulated_gradients,
            ),
        )
        for state in states
    ]  # fmt: skip


def candidate_of(state: GroupState, scores: GroupScores, settings: Settings) -> Candidate:
    """Return a group with the scores of its live channels; the others keep the score with which they went."""
    row, group = state.row, state.group
    kind = scores.scores.dtype
    every = torch.zeros(group.width, dtype=kind) if row is None else torch.tensor(row.scores, dtype=kind)
    every[state.live] = scores.scores
    index = next(index for slot, index in group.positions.items() if slot.role == "filter")
    return Candidate(
        group.name, every, state.gone, unit=index.shape[1], beside=state.size - index.numel(), start=len(state.masked),
        absent=state.absent if settings.of == "original" else None, fixed=scores.blind,
        proportion=group.proportion,
    )  # fmt: skip


def _first_filter(group: Group) -> tuple[str, int]:
    return next((slot.tensor, slot.dim) for slot in group.positions if slot.role == "filter")


def _recalled(state: GroupState, scores: GroupScores) -> GroupScores:
    if not scores.blind or state.row is None:
        return scores
    before = torch.tensor(state.row.scores)[state.live]
    return replace(scores, scores=before, why="", blind=False) if before.any() else scores
