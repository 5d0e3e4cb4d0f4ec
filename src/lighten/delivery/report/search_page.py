"""The report of a search: one HTML file, written again after each trial from ``search.json`` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import write_text
from lighten.delivery.report import search_plots as plots
from lighten.delivery.report.drawings import Drawings
from lighten.delivery.report.figures import Figure, times
from lighten.delivery.report.search_figures import (
    FILE,
    Search,
    agreement_of,
    needs_in_words,
    read_search,
    seconds_text,
    setting_in_words,
    spent,
    where_timed,
)
from lighten.delivery.report.templates import environment
from lighten.delivery.report.wording import noun_of, percent

FOLDED = 12
"""Tables of more rows than this are folded away until they are asked for."""
EVERY = 15
"""Seconds after which the page of a search that is running loads itself again."""
PAGE = "report.html"
SHOWN = {"predicted": ("drop", "latency_ms"), "measured": ("metric", "drop", "latency_ms", "bytes")}
"""The figures of a trial that the table has."""

GAINS = {
    "bytes": ("smaller", "larger"),
    "latency_ms": ("faster", "slower"),
    "macs": ("fewer MACs", "more MACs"),
    "parameters": ("fewer parameters", "more parameters"),
}
"""What a network costs, in words for less and for more of it."""

STATES = {
    "running": "still searching",
    "met": "need met, and confirmed",
    "not met": "need not met",
    "stopped": "stopped; the best so far is kept",
}


@dataclass(frozen=True)
class Row:
    """A trial as the table shows it."""

    number: int
    state: str
    css: str
    what: str
    why: str
    dropped: str
    folder: str | None
    figures: dict[str, Figure | None]
    seconds: str


def write_search_report(folder: str | Path) -> Path:
    """Write ``report.html`` of a search from its ``search.json``, as far as it has come, and return its path.

    Raises:
        UserError: if ``search.json`` is missing or broken.
    """
    return write_text(Path(folder) / PAGE, render(Path(folder)))


def render(folder: Path) -> str:
    """Return the report's HTML."""
    from markupsafe import Markup

    search = read_search(folder)
    jinja = environment(autoescape=True)
    jinja.filters["svg"] = Markup
    jinja.tests["figure"] = lambda value: isinstance(value, Figure)
    return jinja.get_template("search.html").render(_context(search, folder))


def _context(search: Search, folder: Path) -> dict[str, Any]:
    told, leader = search.told, search.leader
    look = told.get("look") or {}
    return {
        "name": folder.resolve().name,
        "file": FILE,
        "state": told["state"],
        "said": STATES[told["state"]],
        "again": EVERY if told["state"] == "running" else None,
        "headline": _headline(search, leader),
        "needs": needs_in_words(search),
        "where": where_timed(search),
        "noun": noun_of(search.task, search.metric),
        "leader": leader,
        "cards": _cards(search, leader),
        "confirmed": told.get("confirmation"),
        "confirmation": _confirmation(search),
        "confirmation_plot": plots.confirmation_plot(search),
        "nearest": told.get("nearest"),
        "help": list(told.get("help") or []),
        "sentences": [_sentence(said) for key in ("plan", "reasons") for said in told.get(key) or [] if said != "met"],
        "frontiers": _frontiers(search),
        "rows": [_row(search, trial) for trial in search.trials],
        "predictions": _predictions(search),
        "time": plots.time_plot(search),
        "time_note": _time_note(search),
        "splits": told.get("splits") or {},
        "look": look,
        "look_seconds": seconds_text(look["seconds"]) if look.get("seconds") is not None else None,
        "damage": _damage(search),
        "frozen": [group for group in look.get("groups") or [] if group.get("why_not")],
        "cut": [_group(group) for group in look.get("groups") or [] if not group.get("why_not")],
        "layers": [_layer(search, layer) for layer in look.get("layers") or []],
        "latency": [_latency(search, entry) for entry in look.get("latency") or []],
        "folded": FOLDED,
    }


def _headline(search: Search, leader: Mapping[str, Any] | None) -> list[tuple[Figure, str]]:
    """Return the best so far in three figures and the words that follow each."""
    if leader is None:
        return []
    gains = [_times_less(search, leader, key, *GAINS[key]) for key in ("bytes", "latency_ms")]
    found = [gain for gain in gains if gain is not None]
    confirmed = search.told.get("confirmation")
    if confirmed:
        drop: Figure | None = Figure("confirmation.drop", confirmed["drop"], search.drop_text(confirmed["drop"]))
    else:
        drop = search.at(leader, "measured", "drop")
    if drop is not None:
        text = drop.text.lstrip("\N{MINUS SIGN}")
        found.append((Figure(drop.key, drop.value, text), "gained" if drop.value < 0 else "lost"))
    return found


def _times_less(
    search: Search, trial: Mapping[str, Any], key: str, better: str, worse: str
) -> tuple[Figure, str] | None:
    """Return how many times less a trial costs than the original, or how many times more."""
    ratio = search.ratio(trial, key)
    if ratio is None:
        return None
    if ratio.value >= 1:
        return ratio, better
    return Figure(ratio.key, ratio.value, times(1 / ratio.value)), worse


def _cards(search: Search, leader: Mapping[str, Any] | None) -> list[tuple[Figure, str, tuple[Figure | str, ...]]]:
    """Return the key figures of the best so far: value, label, and what puts it in its place."""
    if leader is None or not search.original:
        return []
    cards: list[tuple[Figure, str, tuple[Figure | str, ...]]] = []
    for key, words in GAINS.items():
        gain, now = _times_less(search, leader, key, *words), search.at(leader, "measured", key)
        if gain is not None and now is not None:
            was = Figure(f"original.{key}", search.original[key], search.show(key)(search.original[key]))
            cards.append((*gain, (was, " → ", now)))
    metric = search.at(leader, "measured", "metric")
    if metric is not None:
        was = Figure("original.metric", search.original["metric"], search.show("metric")(search.original["metric"]))
        split = leader["measured"].get("split", "select")
        cards.insert(0, (metric, f"{noun_of(search.task, search.metric)}, {split} split", (was, " → ", metric)))
    return cards


def _sentence(said: str) -> str:
    text = str(said).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def _confirmation(search: Search) -> str | None:
    """Return in words how the choice was confirmed."""
    found = search.told.get("confirmation")
    if not found:
        return None
    sure = percent(found["confidence"], 0)
    words = (
        f"On {found['samples']:,} samples that neither the search nor the choice has seen, it loses "
        f"{search.drop_text(found['drop'])}; with {sure} confidence at most {search.drop_text(found['bound'])} "
        f"({found['method']}, one-sided)."
    )
    if found.get("samples_needed"):
        words += f" To decide the need it would take about {found['samples_needed']:,} samples."
    return words


def _frontiers(search: Search) -> list[tuple[str, str]]:
    drawn = [
        ("Drop and latency", plots.frontier_plot(search, "latency_ms")),
        ("Drop and size", plots.frontier_plot(search, "bytes")),
    ]
    return [(heading, svg) for heading, svg in drawn if svg]


def _row(search: Search, trial: Mapping[str, Any]) -> Row:
    number = int(trial["number"])
    leads = search.leader is not None and search.leader["number"] == number
    css = "chosen" if leads else "front" if number in search.frontier else ""
    figures = {
        f"{part}.{key}": search.at(trial, part, key)
        for part, keys in (
            ("predicted", ("drop", "latency_ms")),
            ("measured", ("metric", "drop", "latency_ms", "bytes")),
        )
        for key in keys
    }
    warm = trial.get("warm_from")
    why = str(trial.get("why") or "") + (f" (begins with trial {warm})" if warm is not None else "")
    seconds = trial.get("seconds")
    return Row(
        number, str(trial.get("state")), css, setting_in_words(trial.get("setting") or {}), why,
        str(trial.get("dropped") or ""), _inside(trial.get("folder")) if trial.get("measured") else None, figures,
        seconds_text(seconds) if seconds is not None else "",
    )  # fmt: skip


def _inside(folder: Any) -> str | None:
    """Return a trial's folder as a link, where it lies within the search's own."""
    path = Path(str(folder))
    return None if folder is None or path.is_absolute() or ".." in path.parts or ":" in str(folder) else f"{path}/"


def _predictions(search: Search) -> list[tuple[str, str, str]]:
    drawn = []
    for heading, key in (("Latency", "latency_ms"), ("Drop", "drop")):
        svg = plots.prediction_plot(search, key)
        if svg:
            drawn.append((heading, svg, agreement_of(search, key) or "One trial has no order."))
    return drawn


def _time_note(search: Search) -> str:
    rows = list(spent(search))
    rest = sum(share for name, _, share in rows if name != "fine-tuning")
    whole = sum(seconds for _, seconds, _ in rows)
    budget = (search.told.get("budget") or {}).get("seconds")
    of = f" of {seconds_text(budget)} that were given" if budget else ""
    return f"{seconds_text(whole)}{of}; {percent(rest, 0)} of it is not fine-tuning." if rows else ""


def _damage(search: Search) -> Drawings | None:
    drawings = plots.damage_drawings(search)
    caption = (
        "How far the network’s answers move on the guide split when a group is cut by that share, before any training."
    )
    return Drawings("Sensitivity to pruning", drawings, caption) if drawings else None


def _group(group: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    macs = group.get("macs")
    share = "" if macs is None else percent(macs, 1) if macs <= 1 else f"{macs:,.0f}"
    return str(group["name"]), str(group.get("width", "")), share, str(group.get("score") or ""), _norms(group)


def _norms(group: Mapping[str, Any]) -> str:
    ranks = "rank it well" if group.get("norms_rank_well") else "do not rank it"
    return f"{ranks}: {group['norms']}" if group.get("norms") else ranks


def _layer(search: Search, layer: Mapping[str, Any]) -> tuple[str, str, str, str]:
    error, drop = layer.get("error"), layer.get("drop")
    return (
        str(layer["name"]), str(layer.get("kind", "")), "" if error is None else f"{error:.2g}",
        "" if drop is None else search.drop_text(drop),
    )  # fmt: skip


def _latency(search: Search, entry: Mapping[str, Any]) -> tuple[str, str, str]:
    bits = int(entry.get("bits", 32))
    return (
        percent(float(entry["amount"]), 0),
        "float32" if bits == 32 else f"int{bits}",
        search.show("latency_ms")(entry["ms"]),
    )
