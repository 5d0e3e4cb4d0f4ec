"""Allocation of an amount over the groups."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import UserError
from lighten.pruning.damage import GroupSensitivity
from lighten.pruning.settings import SCOPES, PruneSettings
from lighten.utils.checks import check_one_of


@dataclass(frozen=True)
class Candidate:
    """One group at the moment of choice.

    Attributes:
        name: for messages.
        scores: one for each channel, finite where it is live.
        gone: which channels are removed already, and stay so.
        unit: how many channels of its first layer one channel of the group stands for.
        beside: channels of its first layer that are not of this group.
        start: how many channels were gone before anything was asked for.
        absent: how many more there were before the model was cut, where the amount is one of the original width.
        fixed: no more of it may go.
        proportion: as :class:`~lighten.pruning.groups.Group` has it.
    """

    name: str
    scores: Tensor
    gone: frozenset[int] = frozenset()
    unit: int = 1
    beside: int = 0
    start: int = 0
    absent: int | None = None
    fixed: bool = False
    proportion: tuple[str, int] | None = None

    @property
    def width(self) -> int:
        """Channels, removed ones included."""
        return len(self.scores)

    @property
    def base(self) -> int:
        """Channels that an amount is a share of."""
        return self.width - self.start if self.absent is None else self.width + self.absent

    def removed(self, count: int) -> int:
        """Return how many of ``width`` are gone when ``count`` of ``base`` are."""
        return count + (self.start if self.absent is None else -self.absent)


Share = Callable[[Sequence[int]], float]
"""Channels gone from each group, to the share of something (multiply-accumulates, parameters) that goes with them."""


def allocate(
    candidates: Sequence[Candidate],
    amount: float,
    *,
    scope: str = PruneSettings.scope,
    align: int = PruneSettings.align,
    ramp: float = 1.0,
    share: Share | None = None,
    sensitivities: Sequence[GroupSensitivity] = (),
    counts: Sequence[int] | None = None,
    exact: bool = False,
) -> list[list[int]]:
    """Return the channels of each group that are removed, the ones already gone among them.

    Every group keeps at least one channel. The lowest scores go first, equal ones in an order drawn by the group's
    name.

    Args:
        candidates: the groups.
        amount: share to remove at full strength: of all channels, rounded to the nearest count, halves down, or of
            what ``share`` says.
        scope: ``"uniform"`` removes one share of every group; ``"global"`` goes wherever the scores, each divided by
            the mean of its group's live ones, are lowest; ``"sensitivity"`` makes the last channel of every group
            cost the same damage for what it saves.
        align: at full strength, widths of layers become multiples of this where they can, nearest to what was asked.
        ramp: share of ``amount`` to remove now, in [0, 1].
        share: what ``amount`` is a share of; ``None``: of all channels.
        sensitivities: of each group, for that scope.
        counts: channels of each group to remove at full strength, where that was decided before.
        exact: keep the proportions that the forward wants also below full strength, as the widths will be cut.

    Raises:
        UserError: if ``amount`` cannot be reached, or ``scope`` is unknown.
    """
    check_one_of("scope", scope, SCOPES)
    if ramp == 0.0:
        return [lowest(c, 0) for c in candidates]
    fixed = {c.proportion for c in candidates if c.fixed and c.proportion}
    moving = [which for which, c in enumerate(candidates) if not c.fixed and c.proportion not in fixed]
    if len(moving) < len(candidates):
        found = allocate(
            [candidates[which] for which in moving], amount, scope=scope, align=align, ramp=ramp,
            share=None if share is None else lambda counts: share(_spread(candidates, moving, counts)),
            sensitivities=[sensitivities[which] for which in moving] if sensitivities else (),
            counts=None if counts is None else [counts[which] for which in moving], exact=exact,
        )  # fmt: skip
        return [found[moving.index(which)] if which in moving else lowest(c, 0) for which, c in enumerate(candidates)]
    if counts is None and scope == "global":
        counts = _globally(candidates, amount, align, ramp, share)
    else:
        if counts is None:
            counts = final_counts(candidates, amount, scope, align=align, share=share, sensitivities=sensitivities)
        counts = [_nearest(c.start + ramp * (count - c.start)) for c, count in zip(candidates, counts, strict=True)]
    if exact and ramp < 1.0:
        counts = in_proportion(candidates, counts)
    return [lowest(c, n) for c, n in zip(candidates, counts, strict=True)]


def _spread(candidates: Sequence[Candidate], moving: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Return the counts of all groups, given those of the ones that may lose channels."""
    found = [len(c.gone) for c in candidates]
    for which, count in zip(moving, counts, strict=True):
        found[which] = count
    return found


def final_counts(
    candidates: Sequence[Candidate],
    amount: float,
    scope: str,
    *,
    align: int,
    share: Share | None,
    sensitivities: Sequence[GroupSensitivity] = (),
) -> list[int]:
    """Return how many channels of each group go at full strength, for scopes that do not ask which.

    Raises:
        UserError: if ``amount`` cannot be reached.
    """
    if scope == "uniform" and share is None:
        return in_proportion(candidates, [_aligned(c, _uniform(c, amount), align) for c in candidates])
    at = pressure(candidates, scope, align=align, sensitivities=sensitivities)
    if share is None:
        total, before = sum(c.base for c in candidates), sum(c.removed(0) for c in candidates)
        return _reach(candidates, at, amount, lambda counts: (sum(counts) - before) / total, align)
    return _reach(candidates, at, amount, share, align)


def pressure(
    candidates: Sequence[Candidate], scope: str, *, align: int, sensitivities: Sequence[GroupSensitivity] = ()
) -> Callable[[float], list[int]]:
    """Return how many channels of each group go under a pressure in [0, 1]: none at 0, all but one at 1."""

    def uniform(p: float) -> list[int]:
        counts = [_aligned(c, _within(c, c.removed(_nearest(p * c.base))), align) for c in candidates]
        return in_proportion(candidates, counts)

    def sensitive(p: float) -> list[int]:
        if p >= 1.0:
            return uniform(1.0)
        found = []
        for candidate, sensitivity in zip(candidates, sensitivities, strict=True):
            share = sensitivity.share_at(p / (1.0 - p))
            found.append(_aligned(candidate, _within(candidate, _nearest(share * candidate.width)), align))
        return in_proportion(candidates, found)

    return sensitive if scope == "sensitivity" else uniform


def _reach(
    candidates: Sequence[Candidate], at: Callable[[float], list[int]], amount: float, share: Share, align: int
) -> list[int]:
    """Return the counts on the way from no pressure to all whose share is nearest to ``amount``."""
    most = share(at(1.0))
    if amount > most + 1e-9:
        raise UserError(
            f"amount={amount} cannot be reached: at most {math.floor(1000 * most) / 1000} goes when each of "
            f"{len(candidates)} groups keeps its last channels; ask for less, or exclude fewer layers"
        )
    solved = _solve(lambda p: share(at(p)), amount)
    low, high = at(solved), at(min(1.0, solved + 1e-6))
    between = [_mixed_counts(candidates, low, high, t, align) for t in (0.25, 0.5, 0.75)]
    best = min([low, *between, high], key=lambda counts: abs(share(counts) - amount))
    return _polish(candidates, best, amount, share, align)


def _mixed_counts(
    candidates: Sequence[Candidate], low: Sequence[int], high: Sequence[int], t: float, align: int
) -> list[int]:
    counts = [_aligned(c, round(a + t * (b - a)), align) for c, a, b in zip(candidates, low, high, strict=True)]
    return in_proportion(candidates, counts)


def _polish(candidates: Sequence[Candidate], counts: list[int], amount: float, share: Share, align: int) -> list[int]:
    """Move single groups by one step, as long as that comes nearer to ``amount``."""
    steps = [_allowed(c, align) for c in candidates]
    gap = abs(share(counts) - amount)
    for _ in range(2 * len(candidates)):
        tried = []
        for which, allowed in enumerate(steps):
            for count in _neighbours(allowed, counts[which]):
                other = moved(candidates, counts, which, count)
                tried.append((abs(share(other) - amount), which, other))
        nearest = min(tried, default=(gap, 0, counts))
        if nearest[0] >= gap - 1e-12:
            break
        gap, _, counts = nearest
    return counts


def _neighbours(allowed: Sequence[int], count: int) -> list[int]:
    below, above = [n for n in allowed if n < count], [n for n in allowed if n > count]
    return [*below[-1:], *above[:1]]


def _solve(of: Callable[[float], float], value: float, steps: int = 40) -> float:
    """Return the largest pressure found at which a rising ``of`` is at most ``value``."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) <= value else (low, middle)
    return low


def _uniform(candidate: Candidate, amount: float) -> int:
    count = candidate.removed(_nearest(amount * candidate.base))
    if count >= candidate.width:
        most = math.floor(100 * (candidate.base - 0.5) / candidate.base) / 100
        raise UserError(
            f"amount={amount} would empty {candidate.name} ({candidate.width} channels); "
            f"ask for at most {most}, or exclude that layer"
        )
    return max(count, len(candidate.gone))


def _globally(
    candidates: Sequence[Candidate], amount: float, align: int, ramp: float, share: Share | None
) -> list[int]:
    base, before = sum(c.base for c in candidates), sum(c.removed(0) for c in candidates)
    most = sum(c.width for c in candidates) - len(candidates)
    start = sum(c.start for c in candidates)
    ranked = _ranking(candidates)
    if share is None:
        final = before + _nearest(amount * base)
        if final > most:
            raise UserError(
                f"amount={amount} would empty a layer: each of {len(candidates)} groups keeps one of {base} channels; "
                f"ask for at most {math.floor(100 * (most - before) / base) / 100}"
            )
        counts = _first(candidates, ranked, _nearest(start + ramp * (before + amount * base - start)))
    else:
        at = lambda p: in_proportion(candidates, _first(candidates, ranked, round(p * most)))  # noqa: E731
        first = share([c.start for c in candidates])
        counts = (
            _reach(candidates, at, amount, share, align)
            if ramp == 1.0
            else at(_solve(lambda p: share(at(p)), first + ramp * (amount - first)))
        )
    if ramp < 1.0:
        return counts
    return in_proportion(candidates, [_aligned(c, n, align) for c, n in zip(candidates, counts, strict=True)])


def in_proportion(candidates: Sequence[Candidate], counts: Sequence[int]) -> list[int]:
    """Return counts of channels to remove, near to these, that keep the proportions which the forward wants."""
    found = list(counts)
    for proportion in {c.proportion: None for c in candidates if c.proportion}:
        those = [which for which, c in enumerate(candidates) if c.proportion == proportion]
        steps = proportion[1]
        share = sum(counts[i] for i in those) / sum(candidates[i].width for i in those)
        least = max(-(-len(candidates[i].gone) * steps // candidates[i].width) for i in those)
        taken = max(least, min(steps - 1, _nearest(share * steps)))
        for i in those:
            found[i] = taken * candidates[i].width // steps
    return found


def moved(candidates: Sequence[Candidate], counts: Sequence[int], which: int, count: int) -> list[int]:
    """Return ``counts`` with another one for one group, and for those that are in proportion to it."""
    one = candidates[which]
    return [
        count * c.width // one.width if at == which or (one.proportion and c.proportion == one.proportion) else before
        for at, (c, before) in enumerate(zip(candidates, counts, strict=True))
    ]


def _ranking(candidates: Sequence[Candidate]) -> list[int]:
    """Return the group of each live channel that may go, lowest relative score first; each group keeps its best.

    Where scores are equal, groups lose alike shares.
    """
    ranked = []
    for which, candidate in enumerate(candidates):
        live = _ranked(candidate)
        mean = float(candidate.scores[live].mean()) or 1.0
        ranked += [(float(candidate.scores[i]) / mean, (at + 1) / len(live), which) for at, i in enumerate(live[:-1])]
    return [which for _, _, which in sorted(ranked)]


def _first(candidates: Sequence[Candidate], ranked: Sequence[int], count: int) -> list[int]:
    counts = [len(c.gone) for c in candidates]
    for which in ranked[: max(0, count - sum(counts))]:
        counts[which] += 1
    return counts


def _allowed(candidate: Candidate, align: int) -> list[int]:
    """Return the numbers to remove that leave the group's first layer a multiple of ``align`` wide, or any."""
    step = candidate.width // candidate.proportion[1] if candidate.proportion else 1
    numbers = [n for n in range(len(candidate.gone), candidate.width) if n % step == 0] or [len(candidate.gone)]
    fits = [n for n in numbers if (candidate.beside + (candidate.width - n) * candidate.unit) % align == 0]
    return fits or numbers


def _aligned(candidate: Candidate, count: int, align: int) -> int:
    """Return the number to remove, near ``count``, that leaves the group's first layer a multiple of ``align`` wide."""
    if align == 1:
        return count
    return min(_allowed(candidate, align), key=lambda removed: (abs(removed - count), removed))


def lowest(candidate: Candidate, count: int) -> list[int]:
    """Return the ``count`` channels that go first, those already gone among them."""
    more = max(0, count - len(candidate.gone))
    return sorted([*candidate.gone, *_ranked(candidate)[:more]])


def nearby(candidate: Candidate, count: int, align: int) -> list[int]:
    """Return other numbers of channels to remove, nearest to ``count`` first."""
    others = [n for n in _allowed(candidate, align) if n != count]
    return sorted(others, key=lambda n: (abs(n - count), n))


def _within(candidate: Candidate, count: int) -> int:
    return max(len(candidate.gone), min(candidate.width - 1, count))


def _ranked(candidate: Candidate) -> list[int]:
    """Return the live channels, lowest score first; equal ones in an order that depends on the group's name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(candidate.name.encode()))
    drawn = torch.randperm(candidate.width, generator=generator)
    order = drawn[torch.sort(candidate.scores[drawn], stable=True).indices].tolist()
    return [i for i in order if i not in candidate.gone]


def _nearest(share: float) -> int:
    return math.ceil(share - 0.5 - 1e-9)
