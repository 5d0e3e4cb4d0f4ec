"""Choice of what is tried next, with reasons, from what a look at the network and the trials so far say."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lighten.quantization.settings import DYNAMIC, STATIC
from lighten.search.needs import Needs, percent

CONVOLUTIONAL, TRANSFORMER, DENSE = "convolutional", "transformer", "dense"
RATES = {CONVOLUTIONAL: 1e-3, DENSE: 1e-3, TRANSFORMER: 1e-4}
"""Learning rates of fine-tunes, with AdamW."""
MOST = 0.95
"""The largest amount that is tried."""
NEAR = 0.12
"""A bracket of strengths is closed when what they keep differs by less than this share."""
FIRST, STEP = 0.5, 0.5
"""What is pruned first where nothing predicts it; and which share of what is left goes next, while all is well."""


@dataclass(frozen=True)
class Setting:
    """One trial's settings.

    Attributes:
        amount: share of ``target`` to prune; 0 is no pruning.
        score: which channels of a group go first.
        scope: how the amount is spread over the groups.
        target: what the amount is a share of.
        quantize: ``"qat"``, ``"static"``, ``"dynamic"`` or ``"none"``.
        exclude: layers that stay in float.
        distil: whether the original teaches.
        epochs: of the fine-tune; 0 is none, below 1 a share of one.
        lr: the highest learning rate.
    """

    amount: float = 0.0
    score: str = "auto"
    scope: str = "sensitivity"
    target: str = "macs"
    quantize: str = "qat"
    exclude: tuple[str, ...] = ()
    distil: bool = True
    epochs: float = 0.0
    lr: float = 1e-3

    def as_json(self) -> dict[str, Any]:
        """Return plain Python."""
        return {**asdict(self), "exclude": list(self.exclude)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Setting":
        """Read what :meth:`as_json` gave."""
        return cls(**{**given, "exclude": tuple(given["exclude"])})


@dataclass(frozen=True)
class Tried:
    """What a trial with a fine-tune has come to.

    Attributes:
        number: of the trial.
        setting: that was tried.
        drop: to reckon with; infinite where it was given up.
        figures: measured; empty where it was given up.
    """

    number: int
    setting: Setting
    drop: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Next:
    """What is tried next.

    Attributes:
        setting: to try.
        why: in a sentence.
        warm_from: the trial that it begins with; ``None`` for the original.
        predicted: drop and latency.
    """

    setting: Setting
    why: str
    warm_from: int | None = None
    predicted: Mapping[str, float | None] | None = None


def base_setting(look: Mapping[str, Any], needs: Needs, *, exclude: Sequence[str], distil: bool) -> Setting:
    """Return what all fine-tunes have in common."""
    target = "parameters" if look["kind"] == DENSE or set(needs.limits) & {"bytes", "parameters"} else "macs"
    return Setting(target=target, exclude=tuple(exclude), distil=distil, lr=RATES[look["kind"]])


def after_training(look: Mapping[str, Any] | None, tried: Sequence[str]) -> str | None:
    """Return the mode of post-training quantization that is tried next, if any is left.

    Static first. Dynamic is for networks that are linear layers for the most part, where static has failed or costs too
    much: convolutions get slower by it.
    """
    if STATIC not in tried:
        return STATIC
    linear = look is not None and look["kind"] in (TRANSFORMER, DENSE)
    return DYNAMIC if linear and DYNAMIC not in tried else None


def towards(needs: Needs, figures: Mapping[str, float], drop: float) -> int:
    """Return whether the next trial prunes more (1), less (-1), or nothing is left to be won (0)."""
    if not figures:
        return -1
    if needs.met_by(figures, -math.inf):
        return 1
    if needs.max_drop is None:
        return -1
    if drop > needs.max_drop:
        return -1
    return 0 if needs.limits else 1


def next_setting(
    base: Setting, tried: Sequence[Tried], needs: Needs, *, epochs: Sequence[float], first: float, prunable: bool,
    why_first: str = "",
) -> Next | None:  # fmt: skip
    """Return the next fine-tune, or ``None`` where nothing more is to be won.

    The amount is bracketed by what was measured, in the share that is kept. A trial begins with the cut weights of the
    strongest one that pruned no more.

    Args:
        base: what all have in common.
        tried: fine-tunes so far.
        needs: resolved.
        epochs: of the first, of each that follows.
        first: the amount to begin with.
        prunable: whether anything can be pruned; without, one fine-tune through int8 is all there is.
        why_first: the reason for ``first``.
    """
    if not tried:
        amount = first if prunable else 0.0
        return Next(replace(base, amount=amount, epochs=epochs[0]), why_first or _first_reason(amount))
    if not prunable:
        return None
    low, high, why = 0.0, 1.0, ""
    stopped = False
    for one in tried:
        where = towards(needs, one.figures, one.drop)
        if where > 0:
            low = max(low, one.setting.amount)
        elif where < 0:
            high = min(high, one.setting.amount)
        stopped = stopped or where == 0
    last = tried[-1]
    if stopped or high <= 0.0:
        return None
    if low >= high:  # what was measured contradicts itself: noise
        return None
    if high >= 1.0:
        amount, why = min(MOST, 1 - (1 - low) * STEP), f"trial {last.number} leaves room: half of what is left goes"
        if amount - low < 0.01:
            return None
    else:
        if _kept(low, high) < NEAR:
            return None
        amount = 1 - math.sqrt((1 - low) * (1 - high))
        why = f"{percent(low)} is {_word(tried, low)}, {percent(high)} is {_word(tried, high)}: halfway between"
    amount = round(amount, 4)
    return Next(replace(base, amount=amount, epochs=epochs[1]), why, warm_from=warm_from(tried, amount))


def warm_from(tried: Sequence[Tried], amount: float) -> int | None:
    """Return the finished trial that pruned most and no more than ``amount``."""
    fit = [one for one in tried if one.figures and one.setting.amount < amount]
    return max(fit, key=lambda one: (one.setting.amount, one.number)).number if fit else None


def _kept(low: float, high: float) -> float:
    return math.log((1 - low) / (1 - high))


def _word(tried: Sequence[Tried], amount: float) -> str:
    known = any(abs(one.setting.amount - amount) < 1e-9 for one in tried)
    return "the original" if not known and not amount else "tried"


def _first_reason(amount: float) -> str:
    return f"{percent(amount)} pruned first" if amount else "nothing can be pruned: trained through int8 alone"
