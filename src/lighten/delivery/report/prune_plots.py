"""The report's plots of a pruning plan: savings, widths, norms and sensitivity."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lighten.delivery.report.drawings import COLUMNS, SMALLEST, Drawing, Drawings
from lighten.delivery.report.figures import percent
from lighten.delivery.report.svg import Frame, Point, circle, line, powers_of_ten, rectangle, shorten, svg, text

if TYPE_CHECKING:
    from lighten.pruning.plan import GroupPlan, Plan

MAX_SHOWN = 24
"""The most groups that are drawn, one drawing or one bar each."""

BINS = 18
"""Bars of a histogram of norms."""

DECADES = 4
"""The most powers of ten that damage is drawn over."""

SAVED = {"channels": "channels", "macs": "MACs", "parameters": "parameters", "latency": "latency"}
"""What a plan's ``saved`` and ``target`` speak of, in words."""


def heaviest(groups: "Sequence[GroupPlan]", most: int = MAX_SHOWN) -> "list[GroupPlan]":
    """Return the groups that carry the most multiply-accumulates, the widest of equal ones, in the plan's order."""
    ranked = sorted(range(len(groups)), key=lambda i: (-groups[i].macs, -groups[i].width_before, i))
    return [groups[i] for i in sorted(ranked[:most])]


def savings(plan: "Plan") -> dict[str, float]:
    """Return the shares that the plan removes, of channels first, by the names of :data:`SAVED`."""
    return {key: share for key in SAVED if (share := {"channels": plan.sparsity, **plan.saved}.get(key)) is not None}


def asked(plan: "Plan") -> tuple[str, float] | None:
    """Return of what a share was asked for, and which; ``None`` where the plan does not say."""
    amount = plan.settings.get("amount")
    return None if amount is None else (plan.settings.get("target", "channels"), amount)


def section(plan: "Plan") -> dict[str, Any]:
    """Return the section on the plan: what was asked for and what came of it, in words and in plots."""
    groups = heaviest(plan.groups)
    capped = len(groups) < len(plan.groups)
    rule = f" Drawn are the {len(groups)} of {len(plan.groups)} groups that carry the most MACs." if capped else ""
    before, after = (sum(getattr(group, f"width_{when}") for group in plan.groups) for when in ("before", "after"))
    many = f"{len(plan.groups)} group{'s' if len(plan.groups) != 1 else ''}"
    drawn = [
        Drawings(
            "Saved against asked",
            savings_drawings(plan),
            "What went, as shares of the network before pruning (of the channels: of those that can go). The stroke is "
            "what was asked.",
        ),
        Drawings(
            "Kept and removed channels",
            width_drawings(groups),
            f"A group is a set of layers that must be cut alike. Of {before} channels in {many}, {after} are "
            f"left. Filled: kept. Outlined: removed.{rule}",
            broad=True,
        ),
        Drawings(
            "Norms and the cut",
            norm_drawings(groups),
            "How many channels of a group have which L2 norm, from 0 to its largest. Filled, upward: kept. Outlined, "
            "downward: removed, with the norm they had when they went. The dashed line is the cut, where one norm "
            "parts the two; other scores take channels from anywhere. Below, the score that was used, and why where "
            f"it was chosen for the group.{rule}",
        ),
        Drawings(
            "Sensitivity",
            curve_drawings(groups),
            "Damage to the outputs when a share of this group alone is removed: the mean KL divergence from the whole "
            "network’s, in nats, logarithmic, all groups over the same axes. The dashed line and the ring are the "
            f"share that was chosen.{rule}",
        ),
    ]
    return {"plots": [figure for figure in drawn if figure.drawings], "summary": _achieved(plan)}


def savings_drawings(plan: "Plan") -> list[Drawing]:
    """Return a bar for each share that goes, with a stroke at the one that was asked for."""
    target, amount = asked(plan) or ("", 0.0)
    return [_savings_drawing(key, share, amount if key == target else None) for key, share in savings(plan).items()]


def width_drawings(groups: "Sequence[GroupPlan]") -> list[Drawing]:
    """Return bars of every group's channels, filled where they stay, in up to three drawings side by side."""
    rows = math.ceil(len(groups) / COLUMNS) or 1
    widest = max((group.width_before for group in groups), default=0)
    return [_width_drawing(groups[start : start + rows], widest) for start in range(0, len(groups), rows)]


def norm_drawings(groups: "Sequence[GroupPlan]") -> list[Drawing]:
    """Return a histogram of norms for each group that has them: channels that stay upward, others downward."""
    return [_norm_drawing(group) for group in groups if group.norms]


def cut_of(group: "GroupPlan") -> float | None:
    """Return the norm that parts removed from kept channels; ``None`` where no one norm does."""
    kept, gone = [group.norms[i] for i in group.kept], [group.norms[i] for i in group.removed]
    return (max(gone) + min(kept)) / 2 if gone and kept and max(gone) <= min(kept) else None


def curve_drawings(groups: "Sequence[GroupPlan]") -> list[Drawing]:
    """Return a sensitivity curve for each group that was probed, all over the same axes."""
    groups = [replace(group, curve=_finite(group.curve)) for group in groups if group.curve]
    if not groups:
        return []
    decades = powers_of_ten([damage for group in groups for _, damage in group.curve], least=2, most=DECADES)
    return [_curve_drawing(group, decades) for group in groups]


def damage_at(group: "GroupPlan", share: float) -> float | None:
    """Return the damage along a group's curve, straight between its points; ``None`` beyond the last."""
    for (x, low), (end, high) in itertools.pairwise(group.curve):
        if x <= share <= end:
            return low + (high - low) * (share - x) / (end - x)
    return None


def _achieved(plan: "Plan") -> str:
    found = asked(plan)
    wanted = f"Asked for: {percent(found[1], 1)} of the {SAVED[found[0]]}. " if found else ""
    gone = [f"{percent(share, 1)} of the {SAVED[key]}" for key, share in savings(plan).items()]
    strength = plan.settings.get("strength", 1.0)
    early = f" The plan was made at {percent(strength, 0)} of the full strength." if strength < 1 else ""
    return f"{wanted}Gone: {', '.join(gone)}.{early}"


def _savings_drawing(key: str, share: float, amount: float | None) -> Drawing:
    width, height = SMALLEST[0], 26.0
    bar = [rectangle(0, 5, width, 16, "track"), rectangle(0, 5, share * width, 16, "bar compressed")]
    notes = [f"{percent(share, 1)} gone"]
    if amount is not None:
        bar.append(line((amount * width, 0), (amount * width, height), "asked"))
        notes.append(f"{percent(amount, 1)} asked")
    drawing = svg(bar, height, f"Share of the {SAVED[key]} that went", ", ".join(notes), width=width)
    return Drawing(SAVED[key], drawing, tuple(notes))


def _width_drawing(groups: "Sequence[GroupPlan]", widest: int) -> Drawing:
    width, row = 2 * SMALLEST[0], 36.0
    scale = (width - 84) / widest
    parts = []
    for index, group in enumerate(groups):
        y, caption = row * index, f"{group.name}: {_kept(group)}"
        kept, whole = group.width_after * scale, group.width_before * scale
        parts += [
            text(0, y + 13, shorten(group.name, 44), "tick"),
            rectangle(0, y + 18, kept, 12, "bar compressed", caption),
            text(whole + 6, y + 28.5, f"{group.width_before} → {group.width_after}", "tick"),
        ]
        if group.removed:
            parts.append(rectangle(kept + 1.5, y + 18.5, max(whole - kept - 2, 1), 11, "gone", caption))
    caption = "; ".join(f"{group.name} {_kept(group)}" for group in groups)
    return Drawing("", svg(parts, row * len(groups), "Kept and removed channels", caption, width=width), ())


def _norm_drawing(group: "GroupPlan") -> Drawing:
    width, height = SMALLEST
    top = max(group.norms) or 1.0
    kept, gone = (_histogram([group.norms[i] for i in which], top) for which in (group.kept, group.removed))
    frame = Frame((0, BINS), (-max(gone), max(kept)), height=height, width=width, margin=(2.0, 6.0, 2.0, 18.0))
    for index, (up, down) in enumerate(zip(kept, gone, strict=True)):
        x, base = frame.at(index, 0)
        step = frame.at(index + 1, 0)[0] - x
        if up:
            y = frame.at(0, up)[1]
            frame.add(rectangle(x + 0.75, y, step - 1.5, base - y - 0.5, "bar compressed"))
        if down:
            y = frame.at(0, -down)[1]
            frame.add(rectangle(x + 1.25, base + 1, step - 2.5, max(y - base - 1.5, 1.0), "gone"))
    left, above, right, below = frame.box
    base = frame.at(0, 0)[1]
    frame.add(line((left, base), (right, base), "zero"))
    cut = cut_of(group)
    if cut is not None:
        x = frame.at(cut / top * BINS, 0)[0]
        frame.add(line((x, above - 4), (x, below + 2), "cut"))
    frame.add(text(left, height - 4, "0"), text(right, height - 4, f"{top:.3g}", "end"))
    caption = f"{_kept(group)}; norms from {min(group.norms):.3g} to {max(group.norms):.3g}"
    caption += "" if cut is None else f", cut at {cut:.3g}"
    reason = f"{group.score}: {group.why}" if group.why else group.score
    drawing = frame.drawing(f"Norms of {group.name}", caption)
    return Drawing(group.name, drawing, tuple(note for note in (_kept(group), reason) if note))


def _curve_drawing(group: "GroupPlan", decades: tuple[int, int]) -> Drawing:
    width, height = SMALLEST
    frame = Frame((0, 1), decades, height=height + 12, width=width, margin=(40.0, 8.0, 12.0, 20.0))
    left, top, right, bottom = frame.box
    for power in range(decades[0], decades[1] + 1):
        y = frame.at(0, power)[1]
        frame.add(line((left, y), (right, y), "grid"), text(left - 5, y + 4, f"{10.0**power:g}", "end"))
    frame.add(line((left, bottom), (right, bottom), "axis"))
    for share, where in ((0.0, "mid"), (0.5, "mid"), (1.0, "end")):
        frame.add(text(frame.at(share, 0)[0] + 8 * (share == 1.0), height + 8, percent(share, 0), where))
    frame.path([(x, _height(y, decades)) for x, y in _along(group)], "curve prune")
    chosen = len(group.removed) / group.width_before
    damage = damage_at(group, chosen)
    x = frame.at(chosen, 0)[0]
    frame.add(line((x, top), (x, bottom), "cut"))
    said = f"{percent(chosen, 0)} go: " + ("beyond the probe" if damage is None else f"{damage:.2g} nats")
    if damage is not None:
        frame.add(circle(frame.at(chosen, _height(damage, decades)), 4, "ring chosen", said))
    last = group.curve[-1]
    caption = f"Chosen: {said}. Damage rises to {last[1]:.2g} nats at {percent(last[0], 0)}"
    return Drawing(group.name, frame.drawing(f"Sensitivity of {group.name}", caption), (said,))


def _kept(group: "GroupPlan") -> str:
    return f"{group.width_after} kept, {len(group.removed)} removed"


def _histogram(values: Sequence[float], top: float) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(value / top * BINS))] += 1
    return counts


def _finite(curve: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points up to where the damage is infinite, as it is where a masked network overflows."""
    return tuple(itertools.takewhile(lambda point: math.isfinite(point[1]), curve))


def _height(damage: float, decades: tuple[int, int]) -> float:
    return max(float(decades[0]), math.log10(damage)) if damage > 0 else float(decades[0])


def _along(group: "GroupPlan", steps: int = 8) -> Iterator[Point]:
    """Yield points close enough that what is straight between probes is drawn bent, as the axis is."""
    yield group.curve[0]
    for (x, low), (end, high) in itertools.pairwise(group.curve):
        for step in range(1, steps + 1):
            yield x + (end - x) * step / steps, low + (high - low) * step / steps
