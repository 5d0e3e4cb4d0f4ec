"""Choice of what is tried next, with reasons, from what a look at the network and the trials so far say."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
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
ALIGNS, WIDE = (16, 8), 2
"""Multiples of widths, the best first, and how many times as wide the groups are to be for it."""
STEP = 0.5
"""Which share of what is left goes next, while all is well and nothing better is foreseen."""
LEAST, MOST_AT_FIRST = 0.2, 0.85
"""Bounds of the first amount: predictions begin with what is known before any training."""
TIGHT = 0.95
"""Share of a limit from which on a figure is as near as it need be."""
REACH, REACH_MORE = 2.0, 0.005
"""A drop that is at most so many times as large as allowed, and so much more, may be mended by more training."""
EDGE = 0.2
"""How far within its bracket an amount must lie, as a share."""


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
        align: widths become multiples of this where they can.
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
    align: int = 1

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


def base_setting(look: Mapping[str, Any], needs: Needs, *, distil: bool) -> Setting:
    """Return what all fine-tunes have in common; they train all layers through int8."""
    target = "parameters" if look["kind"] == DENSE or set(needs.limits) & {"bytes", "parameters"} else "macs"
    return Setting(target=target, distil=distil, lr=RATES[look["kind"]], align=look["align"])


def align_of(kind: str, widths: Sequence[int]) -> int:
    """Return of what widths are made multiples: convolutions in integers are fast at these alone.

    A ResNet-20 of half its MACs took 1.33 of its whole time with any widths, 0.71 with multiples of 8, 0.65 of 16.
    """
    if kind != CONVOLUTIONAL or not widths:
        return 1
    return next((align for align in ALIGNS if median(widths) >= WIDE * align), 1)


def after_training(kind: str, tried: Sequence[Setting], exclude: Sequence[str] | None) -> Next | None:
    """Return the quantization after training that is tried next, where those before are not good enough.

    Static first. Dynamic is for networks of linear layers: convolutions get slower by it. Last come the layers that
    int8 costs most in float, once they are known.

    Args:
        kind: of the network.
        tried: settings before.
        exclude: layers that are to stay in float; ``None`` before the look.
    """
    modes = [setting.quantize for setting in tried]
    plain = Setting(quantize=STATIC, distil=False, scope="uniform")
    if STATIC not in modes:
        return Next(plain, "static int8 after training, at once: a first result")
    if kind in (TRANSFORMER, DENSE) and DYNAMIC not in modes:
        return Next(replace(plain, quantize=DYNAMIC), "dynamic int8 after training: static is not good enough")
    if exclude and not any(setting.exclude for setting in tried):
        names = ", ".join(exclude)
        return Next(replace(plain, exclude=tuple(exclude)), f"static int8 after training, with {names} in float")
    return None


def towards(needs: Needs, figures: Mapping[str, float], drop: float) -> int:
    """Return whether the next trial prunes more (1), less (-1), or nothing is left to be won (0)."""
    if not figures:
        return -1
    if needs.met_by(figures, -math.inf):
        return 1
    if needs.max_drop is None:
        tight = any(figures[name] >= TIGHT * limit for name, limit in needs.limits.items())
        return 0 if tight else -1
    if drop > needs.max_drop:
        return -1
    return 0 if needs.limits else 1


def next_setting(
    base: Setting, tried: Sequence[Tried], needs: Needs, *, aim: float, why: str, again: float, prunable: bool
) -> Next | None:
    """Return the next fine-tune, or ``None`` where nothing more is to be won.

    The amount is bracketed by what was measured; within the bracket it is the one that predictions aim at. A trial
    begins with the cut weights of the strongest one that pruned less.

    Args:
        base: what all have in common, with the epochs of the first.
        tried: fine-tunes so far.
        needs: resolved.
        aim: the amount that predictions, corrected by what was measured, say is right.
        why: that is so.
        again: epochs of each that follows.
        prunable: whether anything can be pruned; without, one fine-tune through int8 is all there is.
    """
    if not tried:
        return Next(replace(base, amount=round(aim, 3) if prunable else 0.0), why)
    low, high = 0.0, 1.0
    for one in _latest(tried):
        where = towards(needs, one.figures, one.drop)
        if where == 0:
            return None if needs.max_drop is not None else _again(tried, needs, again)
        if where > 0:
            low = max(low, one.setting.amount)
        else:
            high = min(high, one.setting.amount)
    if not prunable or low >= high or low >= MOST - 0.01 or _width(low, high) < NEAR:
        return _again(tried, needs, again)
    known = [f"{percent(low)} leaves room"] if low else []
    known += [f"{percent(high)} is too much"] if high < 1.0 else []
    bracket = " and ".join(known) or "without pruning there is room"
    least, most = _between(low, high, EDGE), _between(low, high, 1 - EDGE)
    if least < aim < most:
        amount, reason = aim, f"{bracket}; {why}"
    else:
        end = "in between" if low and high < 1.0 else "less" if high < 1.0 else "more"
        amount, reason = _between(low, high, 0.5), f"{bracket}: {end}"
    amount = round(min(MOST, amount), 3)
    if amount <= low or amount >= high:
        return _again(tried, needs, again)
    return Next(replace(base, amount=amount, epochs=again), reason, warm_from(tried, amount))


def _latest(tried: Sequence[Tried]) -> list[Tried]:
    """Return the last trial of each amount."""
    return list({one.setting.amount: one for one in tried}.values())


def _again(tried: Sequence[Tried], needs: Needs, epochs: float) -> Next | None:
    """Return a trial that trains another one on, once: the bracket is closed, and training is what is left.

    Of a drop that is allowed the one that just exceeds it; else the one that meets the target and loses least.
    """
    counts = Counter(one.setting.amount for one in tried)
    fit = [
        one for one in tried
        if one.figures and counts[one.setting.amount] == 1 and not needs.met_by(one.figures, -math.inf)
        and (needs.max_drop is None or needs.max_drop < one.drop <= REACH * needs.max_drop + REACH_MORE)
    ]  # fmt: skip
    if not fit:
        return None
    one = min(fit, key=lambda one: one.drop)
    why = f"trial {one.number} is trained on: the strength is found, and more training loses less"
    return Next(replace(one.setting, epochs=epochs), why, one.number)


def warm_from(tried: Sequence[Tried], amount: float) -> int | None:
    """Return the finished trial that pruned most and no more than ``amount``."""
    fit = [one for one in tried if one.figures and one.setting.amount < amount]
    return max(fit, key=lambda one: (one.setting.amount, one.number)).number if fit else None


def sentences(look: Mapping[str, Any], base: Setting, first: float, *, why: str) -> list[str]:
    """Return what was chosen and why, in plain sentences."""
    groups, layers = look["groups"], look["layers"]
    found = [f"the network is {look['kind']}"]
    if look["prunable"]:
        ranked = sum(group["norms_rank_well"] for group in groups)
        found.append(_criteria(len(groups), ranked))
        hurt = sorted(groups, key=lambda group: -max((damage for _, damage in group["curve"]), default=0.0))[:2]
        names = " and ".join(group["name"] for group in hurt)
        found.append(f"each group loses channels where that harms least for what it saves; {names} lose least")
        found.append(f"the first trial prunes {percent(first)} of the {base.target}: {why}")
        if base.align > 1:
            found.append(f"widths become multiples of {base.align}, at which int8 convolutions are fast")
    else:
        found.append(f"nothing is pruned: {look['why_not']}")
    if layers:
        found.append(f"all layers are trained through int8; {layers[0]['name']} loses most accuracy by it")
    if base.distil:
        found.append("the original teaches its compressed self")
    else:
        found.append("there is no teacher: nothing says what kind of answer the network gives")
    return found


def _criteria(groups: int, ranked: int) -> str:
    if ranked in (0, groups):
        which, score = ("every group", "magnitude") if ranked else ("no group", "FPGM")
        return f"norms rank the channels of {which} well: all {groups} groups go by {score}"
    return f"norms rank the channels of {ranked} of {groups} groups well: these go by magnitude, the others by FPGM"


def aim_of(foresight: Any, base: Setting, needs: Needs) -> tuple[float, str]:
    """Return the amount that predictions say is right, and why.

    Args:
        foresight: a :class:`~lighten.search.foresight.Foresight`.
        base: what all fine-tunes have in common.
        needs: resolved.
    """
    if needs.limits:
        return max(LEAST, foresight.weakest(base, needs)), "the least that is predicted to meet the target"
    assert needs.max_drop is not None
    aim = foresight.strongest(base, needs.max_drop)
    return min(MOST_AT_FIRST, max(LEAST, aim)), f"the most whose predicted drop is within {percent(needs.max_drop)}"


def _between(low: float, high: float, share: float) -> float:
    """Return the amount at a share of the way from ``low`` to ``high``, in the logarithm of what is kept."""
    least = 1 - (1 - low) * STEP**2 if high >= 1.0 else high
    return 1 - math.exp((1 - share) * math.log(1 - low) + share * math.log(1 - least))


def _width(low: float, high: float) -> float:
    return math.log((1 - low) / (1 - high)) if high < 1.0 else math.inf
