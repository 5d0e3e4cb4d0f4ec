"""Drawings of a search: the frontier, predictions, where time went, the confirmation, sensitivities."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lighten.delivery.report.drawings import SMALLEST, Drawing
from lighten.delivery.report.search_figures import COSTS, Search, pairs_of, seconds_text, setting_in_words, spent
from lighten.delivery.report.svg import Frame, Point, circle, line, rectangle, shorten, spread, text, ticks
from lighten.delivery.report.wording import four_digits, percent

HEADROOM = 3.0
"""So many times the largest drop of interest is drawn; what loses more stands at the upper edge."""
MARGIN = (76.0, 26.0, 24.0, 36.0)


def frontier_plot(search: Search, along: str) -> str | None:
    """Return the drop of every measured trial over what it costs; ``None`` where none was measured.

    Args:
        search: whose trials.
        along: ``"latency_ms"`` or ``"bytes"``.
    """
    trials = [trial for trial in search.measured if trial["measured"].get(along)]
    if not trials:
        return None
    noun, show = COSTS[along]
    most, limit = search.needs.get("max_drop"), search.needs.get(along)
    original = (search.original or {}).get(along)
    costs = [trial["measured"][along] for trial in trials] + [cost for cost in (original, limit) if cost]
    frame = Frame((min(costs) / 1.25, max(costs) * 1.25), _drops(search, trials), log_x=True, margin=MARGIN)
    _, top, right, bottom = frame.box
    draw_need(frame, search, most, limit)
    frame.y_axis(lambda drop: search.drop_text(drop, _digits(frame.y)))
    ends = [min(costs), max(costs)] if max(costs) > min(costs) else costs[:1]
    frame.x_axis(ends, show, f"{noun}, logarithmic")
    front = sorted(
        (trial["measured"][along], trial["measured"]["drop"]) for trial in trials if trial["number"] in search.frontier
    )
    frame.path(_stairs(front, frame), "guide")
    if original:
        x, y = frame.at(original, 0.0)
        frame.add(circle((x, y), 5.5, "ring teacher", f"the original: {show(original)}"))
        frame.add(text(x, y - 10, "original", "mark mid teacher"))
    leader = search.leader
    named = []
    for trial in sorted(trials, key=lambda trial: (trial["number"] in search.frontier, trial is leader)):
        at = frame.at(trial["measured"][along], min(max(trial["measured"]["drop"], frame.y[0]), frame.y[1]))
        beyond = trial["measured"]["drop"] > frame.y[1]
        frame.add(_point(search, trial, at, _colour(search, trial), beyond))
        if trial["number"] in search.frontier or trial is leader:
            named.append((trial, at))
    heights = spread([y for _, (_, y) in named], 13, highest=bottom - 4)
    for (trial, (x, _)), height in zip(named, heights, strict=True):
        css = f"label {_colour(search, trial)}" if trial is leader else "tick"
        word = f"{trial['number']}, chosen" if trial["number"] == search.told.get("chosen") else str(trial["number"])
        end = x + 60 > right
        frame.add(text(x - 10 if end else x + 10, max(height - 5, top + 10), word, f"{css} end" if end else css))
    caption = "; ".join(_told(search, trial) for trial in trials)
    return frame.drawing(f"Drop against {noun}, a point a trial", caption)


def draw_need(frame: Frame, search: Search, most: float | None, limit: float | None) -> None:
    """Tint what meets the need, and draw its bounds as lines."""
    left, top, right, bottom = frame.box
    ceiling = top if most is None else frame.at(frame.x[0], min(max(most, frame.y[0]), frame.y[1]))[1]
    wall = right if not limit else frame.at(limit, 0.0)[0]
    if most is None and not limit:
        return
    frame.add(rectangle(left, ceiling, wall - left, bottom - ceiling, "band compressed", "meets the need"))
    if most is not None:
        frame.add(line((left, ceiling), (right, ceiling), "cut"))
        frame.add(text(right, ceiling - 6, f"need: {search.drop_text(most)}", "mark end total"))
    if limit:
        frame.add(line((wall, top), (wall, bottom), "cut"), text(wall + 5, top + 10, "need", "mark total"))


def prediction_plot(search: Search, key: str) -> str | None:
    """Return what was predicted against what was measured; ``None`` where nothing was predicted.

    Args:
        search: whose trials.
        key: ``"latency_ms"`` or ``"drop"``.
    """
    pairs = pairs_of(search, key)
    if not pairs:
        return None
    values = [value for _, *both in pairs for value in both]
    pad = 0.12 * (max(values) - min(values) or abs(values[0]) or 1.0)
    span = (min(values) - pad, max(values) + pad)
    if key == "drop":  # some networks fall apart, as above
        span = _drops(search, [trial for trial, *_ in pairs])
    digits = _digits(span)
    show: Callable[[float], str] = search.show(key)
    tick = show if key != "drop" else lambda drop: search.drop_text(drop, digits)
    frame = Frame(span, span, height=300.0, margin=MARGIN)
    frame.y_axis(tick)
    frame.x_axis(ticks(*span, 3), tick, "predicted")
    frame.path([(span[0], span[0]), (span[1], span[1])], "guide")
    for trial, said, found in pairs:
        beyond = max(said, found) > span[1]
        at = frame.at(*(min(max(value, span[0]), span[1]) for value in (said, found)))
        frame.add(_point(search, trial, at, _colour(search, trial), beyond))
    caption = "; ".join(
        f"trial {trial['number']}: predicted {show(said)}, measured {show(found)}" for trial, said, found in pairs
    )
    return frame.drawing(f"Measured {key.partition('_')[0]} over what was predicted", caption)


def time_plot(search: Search) -> str | None:
    """Return a bar for each thing that time went into; ``None`` where nothing says it."""
    rows = list(spent(search))
    if not rows:
        return None
    most = max(seconds for _, seconds, _ in rows)
    row = 30.0
    frame = Frame((0, most), (0, 1), height=row * len(rows) + 12, margin=(132.0, 6.0, 128.0, 6.0))
    left, top, _, _ = frame.box
    for index, (name, seconds, share) in enumerate(rows):
        y = top + row * index
        end = frame.at(seconds, 0)[0]
        css = "compressed" if name == "fine-tuning" else "student"
        frame.add(
            text(left - 10, y + 19, name, "tick end"),
            rectangle(left, y + 6, max(end - left, 1.5), 18, f"strip {css}", f"{name}: {seconds_text(seconds)}"),
            text(max(end, left + 1.5) + 8, y + 19, f"{seconds_text(seconds)}, {percent(share, 0)}", "tick"),
        )
    told = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds, _ in rows)
    return frame.drawing("Where time went", told)


def confirmation_plot(search: Search) -> str | None:
    """Return the confirmed drop with its bound beside the need; ``None`` before the confirmation."""
    found, most = search.told.get("confirmation"), search.needs.get("max_drop")
    if not found:
        return None
    drop, bound = float(found["drop"]), float(found["bound"])
    values = [0.0, drop, bound, *([most] if most is not None else [])]
    pad = 0.15 * (max(values) - min(values) or 0.01)
    frame = Frame((min(values) - pad, max(values) + pad), (0, 1), height=150.0, margin=(24.0, 36.0, 24.0, 40.0))
    _, top, _, bottom = frame.box
    middle = (top + bottom) / 2
    frame.x_axis(ticks(*frame.x, 4), lambda v: search.drop_text(v, _digits(frame.x)), "drop")
    within = most is None or bound <= most
    css = "compressed" if within else "prune"
    (a, _), (b, _) = frame.at(drop, 0), frame.at(bound, 0)
    late = b > frame.width / 2
    if most is not None:
        x = frame.at(most, 0)[0]
        frame.add(line((x, top - 8), (x, bottom), "cut"), text(x, top - 13, "need", "mark mid total"))
    frame.add(
        line((a, middle), (b, middle), f"curve {css}"),
        line((b, middle - 7), (b, middle + 7), f"curve {css}"),
        circle((a, middle), 5.5, f"dot {css}", f"drop {search.drop_text(drop)}"),
        text(a, middle - 12, search.drop_text(drop), f"mark mid {css}"),
        text(b - 2 if late else a, middle + 22, f"at most {search.drop_text(bound)}", f"mark {'end ' * late}{css}"),
    )
    told = f"drop {search.drop_text(drop)}, at most {search.drop_text(bound)}"
    return frame.drawing("The confirmation", told)


def damage_drawings(search: Search) -> list[Drawing]:
    """Return a small curve for each group of the look: the damage over the share of it that is cut."""
    groups = [group for group in (search.told.get("look") or {}).get("groups") or [] if group.get("curve")]
    if not groups:
        return []
    most = max(float(damage) for group in groups for _, damage in group["curve"]) or 1.0
    least = min(0.0, *(float(damage) for group in groups for _, damage in group["curve"]))
    return [_damage(group, (least, most * 1.08)) for group in groups]


def _damage(group: Mapping[str, Any], span: tuple[float, float]) -> Drawing:
    width, height = SMALLEST
    frame = Frame((0, 1), span, width=width, height=height, margin=(6.0, 14.0, 6.0, 16.0))
    left, _, right, bottom = frame.box
    frame.add(line((left, bottom), (right, bottom), "axis"))
    points = sorted({(0.0, 0.0), *((float(share), float(damage)) for share, damage in group["curve"])})
    frame.path(points, "curve prune")
    share, damage = points[-1]
    said = f"{percent(share, 0)} cut: {four_digits(damage)}"
    frame.add(circle(frame.at(share, damage), 3, "dot prune", said))
    frame.add(text(left, bottom + 13, "0", "mark"), text(right, bottom + 13, "all cut", "mark end"))
    norms = "norms rank it well" if group.get("norms_rank_well") else "norms do not rank it"
    return Drawing(shorten(str(group["name"]), 30), frame.drawing(str(group["name"]), said), (said, norms))


def _point(search: Search, trial: Mapping[str, Any], at: Point, css: str, beyond: bool) -> str:
    """Return a trial's point, which leads to its row of the table."""
    kind = "disc" if css != "teacher" else "dot"
    radius = 7.0 if trial is search.leader else 5.5 if kind == "disc" else 4.5
    drawn = circle(at, radius, f"{'ring' if beyond else kind} {css}", _told(search, trial))
    return f'<a href="#trial-{int(trial["number"])}">{drawn}</a>'


def _told(search: Search, trial: Mapping[str, Any]) -> str:
    measured = trial["measured"]
    costs = [show(measured[key]) for key, (_, show) in COSTS.items() if measured.get(key) is not None][:2]
    what = setting_in_words(trial.get("setting") or {})
    return f"trial {trial['number']}: {search.drop_text(measured['drop'])}, {', '.join(costs)} ({what})"


def _colour(search: Search, trial: Mapping[str, Any]) -> str:
    if trial is search.leader or trial["number"] == (search.leader or {}).get("number"):
        return "compressed"
    return "student" if trial["number"] in search.frontier else "teacher"


def _drops(search: Search, trials: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the range of drops that is drawn: some networks fall apart, and would flatten the rest."""
    drops, most = [float(trial["measured"]["drop"]) for trial in trials], search.needs.get("max_drop")
    leader = search.leader
    interest = [most or 0.0, leader["measured"]["drop"] if leader else min(drops)]
    high = min(max([*drops, *interest]), max(HEADROOM * max(interest), 0.005))
    low = min([0.0, *drops])
    pad = 0.09 * (high - low or 0.01)
    return low - pad, high + pad


def _stairs(front: Sequence[Point], frame: Frame) -> list[Point]:
    """Return the steps through the frontier, as far as they lie in the frame."""
    inside = [point for point in front if point[1] <= frame.y[1]]
    least: list[Point] = []
    for point in inside:  # the frontier is of three figures: in two of them some points lie above it
        if not least or point[1] < least[-1][1]:
            least.append(point)
    steps = [corner for (_, high), (x, low) in pairwise(least) for corner in ((x, high), (x, low))]
    return [*least[:1], *steps]


def _digits(span: tuple[float, float]) -> int:
    width = 100 * (span[1] - span[0])
    return 0 if width > 8 else 1 if width > 0.8 else 2
