"""Outcome of a search: its points, what is kept as the best, and the verdict in words."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lighten.search.confirm import Confirmation
from lighten.search.frontier import Point
from lighten.search.needs import FIGURES, Needs, percent
from lighten.search.storage import BEST
from lighten.search.trial import STUDENT


def points_of(state: Mapping[str, Any]) -> list[Point]:
    """Return the finished trials of a search as points."""
    return [
        Point(
            row["number"], row["folder"], row["measured"]["metric"], row["measured"]["drop"],
            {name: row["measured"][name] for name in FIGURES}, row["measured"]["bound"],
        )
        for row in state["trials"]
        if row["state"] == "complete"
    ]  # fmt: skip


def keep(folder: Path, chosen: Point) -> None:
    """Copy a trial's model, file and scores to ``best/``; what a kill in between leaves is mended by the next call."""
    home, source = folder / BEST, folder / chosen.folder
    new = home.with_name(f".writing-{BEST}-0.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    shutil.copytree(source / STUDENT, new / STUDENT)
    for path in [*source.glob("student.*"), source / "scores.json"]:
        shutil.copy2(path, new / path.name)
    shutil.rmtree(home, ignore_errors=True)
    new.rename(home)


def verdict(
    state: Mapping[str, Any], chosen: Point, found: Confirmation, needs: Needs, broken: Sequence[str]
) -> dict[str, Any]:
    """Return what ``search.json`` says of the end.

    Args:
        state: its content so far.
        chosen: the point that was confirmed.
        found: the confirmation.
        needs: resolved.
        broken: what is not met, in words.
    """
    nearest = f"not met; the nearest is trial {chosen.trial}: {'; '.join(broken)}" if broken else None
    confirmed = (
        f"on {found.samples} samples that chose nothing the drop is {percent(found.drop)}, and with "
        f"{found.confidence:.0%} confidence at most {percent(found.bound)} ({found.method})"
    )
    why = state["trials"][chosen.trial]["why"]
    return {
        "confirmation": asdict(found),
        "met": not broken,
        "reasons": [f"trial {chosen.trial} is chosen: {why}", confirmed, nearest or "met"],
        "nearest": nearest,
        "help": _help(state, chosen, found, needs) if broken else [],
    }


def outcome(row: Mapping[str, Any]) -> str:
    """Return what a trial has come to, for people."""
    if row["state"] != "complete":
        return f"{'given up' if row['state'] == 'pruned' else 'failed'}: {row['dropped']}"
    found = row["measured"]
    size, time = f"{found['bytes'] / 1000:.1f} kB", f"{found['latency_ms']:.3g} ms"
    return f"drop {percent(found['drop'])}, {size}, {time}, in {row['seconds']:.0f} s"


def _help(state: Mapping[str, Any], chosen: Point, found: Confirmation, needs: Needs) -> list[str]:
    words = []
    if found.samples_needed:
        words.append(f"about {found.samples_needed} samples to confirm by would decide it; there are {found.samples}")
    lost = needs.max_drop is not None and found.drop > needs.max_drop
    if lost or needs.met_by(chosen.figures, -1.0):
        words.append("a larger budget: longer fine-tunes lose less")
    layers = state.get("look", {}).get("layers") or []
    if lost and layers:
        words.append(f"the layer that int8 costs most is {layers[0]['name']}; it may stay in float")
    return words or ["a larger budget, or a weaker need"]
