"""How much where: which channels of each group go, given their scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import UserError, did_you_mean

SCOPES = ("uniform", "global")


@dataclass(frozen=True)
class Candidate:
    """One group at the moment of choice.

    Attributes:
        name: for messages.
        scores: one for each channel, finite where it is live.
        gone: which channels are removed already, and stay so.
        unit: how many channels of its first layer one channel of the group stands for.
        beside: channels of its first layer that are not of this group.
    """

    name: str
    scores: Tensor
    gone: frozenset[int] = frozenset()
    unit: int = 1
    beside: int = 0

    @property
    def width(self) -> int:
        """Channels, removed ones included."""
        return len(self.scores)


def allocate(
    candidates: Sequence[Candidate], amount: float, *, scope: str = "uniform", align: int = 1, strength: float = 1.0
) -> list[list[int]]:
    """Return the channels of each group that are removed, the ones already gone among them.

    Every group keeps at least one channel. The lowest scores go first, equal ones by index.

    Args:
        candidates: the groups.
        amount: share of all channels to remove at full strength, rounded to the nearest count, halves down.
        scope: ``"uniform"`` removes this share of every group; ``"global"`` this share of all channels, wherever the
            scores, each divided by the mean of its group's live ones, are lowest.
        align: at full strength, widths of layers become multiples of this where they can, nearest to what was asked.
        strength: share of ``amount`` to remove now, in [0, 1]: the ramp.

    Raises:
        UserError: if ``amount`` would empty a group, or ``scope`` is unknown.
    """
    if scope not in SCOPES:
        raise UserError(f"no scope {scope!r}; {did_you_mean(scope, SCOPES)}")
    counts = _uniform(candidates, amount, align, strength) if scope == "uniform" else None
    if counts is None:
        counts = _everywhere(candidates, amount, strength)
        if strength == 1.0:
            counts = [_aligned(c, n, align) for c, n in zip(candidates, counts, strict=True)]
    return [_lowest(c, n) for c, n in zip(candidates, counts, strict=True)]


def _uniform(candidates: Sequence[Candidate], amount: float, align: int, strength: float) -> list[int]:
    counts = []
    for candidate in candidates:
        count = _nearest(amount * candidate.width)
        if count >= candidate.width:
            most = math.floor(100 * (candidate.width - 0.5) / candidate.width) / 100
            raise UserError(
                f"amount={amount} would empty {candidate.name} ({candidate.width} channels); "
                f"ask for at most {most}, or exclude that layer"
            )
        counts.append(_nearest(strength * _aligned(candidate, count, align)))
    return counts


def _everywhere(candidates: Sequence[Candidate], amount: float, strength: float) -> list[int]:
    total = sum(c.width for c in candidates)
    most = total - len(candidates)
    if _nearest(amount * total) > most:
        raise UserError(
            f"amount={amount} would empty a layer: each of {len(candidates)} groups keeps one of {total} channels; "
            f"ask for at most {math.floor(100 * most / total) / 100}"
        )
    more = _nearest(strength * amount * total) - sum(len(c.gone) for c in candidates)
    ranked = []
    for which, candidate in enumerate(candidates):
        live = _ranked(candidate)
        mean = float(candidate.scores[live].mean()) or 1.0
        ranked += [(float(candidate.scores[i]) / mean, which, i) for i in live[:-1]]
    counts = [len(c.gone) for c in candidates]
    for _, which, _ in sorted(ranked)[: max(0, more)]:
        counts[which] += 1
    return counts


def _aligned(candidate: Candidate, count: int, align: int) -> int:
    """Return the number to remove, near ``count``, that leaves the group's first layer a multiple of ``align`` wide."""
    fits = [
        removed
        for removed in range(len(candidate.gone), candidate.width)
        if (candidate.beside + (candidate.width - removed) * candidate.unit) % align == 0
    ]
    return min(fits, key=lambda removed: (abs(removed - count), removed), default=count)


def _lowest(candidate: Candidate, count: int) -> list[int]:
    more = max(0, count - len(candidate.gone))
    return sorted([*candidate.gone, *_ranked(candidate)[:more]])


def _ranked(candidate: Candidate) -> list[int]:
    """Return the live channels, lowest score first, equal ones by index."""
    order = torch.sort(candidate.scores, stable=True).indices.tolist()
    return [i for i in order if i not in candidate.gone]


def _nearest(share: float) -> int:
    return math.ceil(share - 0.5 - 1e-9)
