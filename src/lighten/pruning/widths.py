"""Widths of the groups after the whole amount is removed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, Share, final_counts
from lighten.pruning.candidates import candidate_of, group_states, score_groups
from lighten.pruning.cost import Costs, costs_of
from lighten.pruning.damage import DamageCurve, GroupSensitivity
from lighten.pruning.groups import Structure
from lighten.pruning.importance import GroupScores
from lighten.pruning.latency import reach_latency
from lighten.pruning.sensitivity import measure_sensitivity
from lighten.pruning.settings import Settings
from lighten.utils.inputs import Call

COSTS = ("macs", "parameters")
"""Targets that follow from the widths alone."""


@dataclass(frozen=True)
class Allocation:
    """How much of each group goes: found once, it holds for every plan after.

    Attributes:
        counts: channels of each group to remove in all.
        curves: points (share of a group's channels, damage), by group.
        latency: share of the whole model's time that the cut one saves.
    """

    counts: tuple[int, ...]
    curves: tuple[DamageCurve, ...] = ()
    latency: float | None = None

    def to_json(self) -> str:
        """Return one JSON object that :meth:`from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Allocation":
        """Read an allocation."""
        found = json.loads(text)
        curves = tuple(tuple((share, damage) for share, damage in curve) for curve in found["curves"])
        return cls(tuple(found["counts"]), curves, found["latency"])


def allocate_widths(
    structure: Structure,
    model: nn.Module,
    settings: Settings,
    *,
    calibration: Sequence[Call] | None = None,
    curves: Mapping[str, DamageCurve] | None = None,
    accumulated_gradients: Mapping[str, Tensor] | None = None,
) -> Allocation | None:
    """Return how many channels of each group go in all; ``None`` where the scores decide that at each plan.

    Args:
        structure: of this model.
        model: its weights are scored.
        settings: as given.
        calibration: calls for the scope ``sensitivity``.
        curves: what was measured for it before, by group; groups that it lacks are measured.
        accumulated_gradients: see :func:`~lighten.pruning.importance.score_group`.

    Raises:
        UserError: if the amount cannot be reached, or an input for calibration is missing.
    """
    if settings.scope == "global":
        return None
    costs, states = costs_of(structure), group_states(structure)
    if settings.scope == "sensitivity" or settings.target == "latency":
        scores = score_groups(states, model, settings, accumulated_gradients)
    else:  # the widths do not depend on the scores
        zeros = [torch.zeros(len(state.live)) for state in states]
        scores = [GroupScores(zero, zero, settings.score) for zero in zeros]
    candidates = [candidate_of(state, given, settings) for state, given in zip(states, scores, strict=True)]
    _check_amount(structure, candidates, settings, costs)
    found: list[DamageCurve] = []
    known: list[GroupSensitivity] = []
    if settings.scope == "sensitivity":
        if curves is not None:
            missing = [which for which, group in enumerate(structure.groups) if group.name not in curves]
            if missing and calibration is None:
                name = structure.groups[missing[0]].name
                raise UserError(f"curves lack group {name!r}, expected one for each; measure them on this network")
            measured = (
                measure_sensitivity(model, structure, candidates, calibration or (), only=missing) if missing else ()
            )
            more = iter(measured)  # of groups that an earlier cut has made: the features of a last head, say
            found = [curves[group.name] if group.name in curves else next(more) for group in structure.groups]
        elif calibration is None:
            raise UserError("scope='sensitivity' needs calibration, a few inputs that stand for the data; give them")
        else:
            found = measure_sensitivity(model, structure, candidates, calibration)
        known = [
            GroupSensitivity(curve, _saving(costs, candidates, which, settings.target))
            for which, curve in enumerate(found)
        ]
    if settings.target == "latency":
        counts, saved = reach_latency(model, structure, candidates, _of_present(settings, structure), known)
        return Allocation(tuple(counts), tuple(found), saved)
    share = share_of_target(costs, structure, candidates, settings)
    counts = final_counts(
        candidates, settings.amount, settings.scope, align=settings.align, share=share, sensitivities=known
    )
    return Allocation(tuple(counts), tuple(found))


def share_of_target(
    costs: Costs, structure: Structure, candidates: Sequence[Candidate], settings: Settings
) -> Share | None:
    """Return what the amount is a share of, as a function of the channels that are gone."""
    target = settings.target
    if target not in COSTS:
        return None
    if settings.of == "original":
        left = 1.0 - structure.saved.get(target, 0.0)
        return lambda counts: 1.0 - left * (1.0 - costs.removed(counts, target))
    before = costs.removed([c.start for c in candidates], target)
    return lambda counts: (costs.removed(counts, target) - before) / (1.0 - before)


def _check_amount(structure: Structure, candidates: Sequence[Candidate], settings: Settings, costs: Costs) -> None:
    """Raise where so much of the original model is gone that nothing is left to do."""
    if settings.of == "present":
        return
    share = share_of_target(costs, structure, candidates, settings)
    if share is not None:
        done = share([c.start for c in candidates])
    elif settings.target == "latency":
        done = structure.saved.get("latency", 0.0)
    else:
        done = sum(c.start - c.removed(0) for c in candidates) / sum(c.base for c in candidates)
    if done >= settings.amount:
        raise UserError(
            f"amount={settings.amount} of the original {settings.target}: {done:.1%} are gone already; "
            "ask for more, or for a share of what is left with of='present'"
        )


def _of_present(settings: Settings, structure: Structure) -> Settings:
    """Return the same amount as a share of the present latency."""
    if settings.of == "present":
        return settings
    if structure.saved and "latency" not in structure.saved:
        raise UserError(
            "of='original' with target='latency' needs a model whose latency was measured when it was cut; "
            "use of='present'"
        )
    return replace(settings, amount=1.0 - (1.0 - settings.amount) / (1.0 - structure.saved.get("latency", 0.0)))


def _saving(costs: Costs, candidates: Sequence[Candidate], which: int, target: str) -> float:
    """Return the share of what counts that goes with all channels of one group."""
    if target == "channels":
        return candidates[which].width / sum(c.width for c in candidates)
    counts = [c.width if i == which else 0 for i, c in enumerate(candidates)]
    return costs.removed(counts, "parameters" if target == "parameters" else "macs")
