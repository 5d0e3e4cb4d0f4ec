"""What ``search.json`` tells of a search, as people read it; each number is still tied to its place there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lighten.delivery.folders.run import read_json
from lighten.delivery.report.figures import Figure, amount, milliseconds, times
from lighten.delivery.report.wording import CLASSES, Told, format_of, percent
from lighten.errors import UserError
from lighten.utils.ranks import spearman

FILE = "search.json"
STATES = ("running", "met", "not met", "stopped")
SCHEMA = 1

COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "latency_ms": ("latency", milliseconds),
    "bytes": ("size", lambda value: amount(value, "B")),
    "macs": ("MACs", amount),
    "parameters": ("parameters", amount),
}
"""What a network costs: how that is called and written."""

QUANTIZED = {
    "qat": "int8, trained through",
    "static": "int8 after training",
    "dynamic": "int8 weights after training",
    "none": "float",
}
RUNTIMES = {"onnx": "onnxruntime", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Search:
    """A search as far as it has come.

    Attributes:
        told: what ``search.json`` holds.
    """

    told: Mapping[str, Any]

    @property
    def task(self) -> Told:
        """What the network answers."""
        task: Told = self.told.get("task") or CLASSES
        return task

    @property
    def metric(self) -> str:
        """The name of the metric whose drop counts."""
        return str(self.told.get("metric") or self.task["metric"])

    @property
    def needs(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self.told.get("needs") or {}

    @property
    def original(self) -> Mapping[str, Any] | None:
        """The figures of the network that came, once it was measured."""
        return self.told.get("original")

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """All of them, in the order in which they began."""
        return list(self.told.get("trials") or [])

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The trials that have figures."""
        return [trial for trial in self.trials if trial.get("measured")]

    @property
    def frontier(self) -> set[int]:
        """The numbers of the trials that no other beats."""
        return set(self.told.get("frontier") or [])

    @property
    def leader(self) -> Mapping[str, Any] | None:
        """The chosen trial; before the choice the fastest of the frontier within the drop that is allowed."""
        chosen, most = self.told.get("chosen"), self.needs.get("max_drop")
        if chosen is not None:
            return next((trial for trial in self.measured if trial["number"] == chosen), None)
        front = [trial for trial in self.measured if trial["number"] in self.frontier]
        fit = [trial for trial in front if most is None or trial["measured"]["drop"] <= most]
        return min(fit, key=lambda trial: trial["measured"]["latency_ms"], default=None)

    def at(self, trial: Mapping[str, Any], part: str, key: str) -> Figure | None:
        """Return a figure of a trial: of ``measured`` or ``predicted``; ``None`` where it has none."""
        value = (trial.get(part) or {}).get(key)
        if value is None:
            return None
        place = f"trials.{self.trials.index(trial)}.{part}.{key}"
        return Figure(place, value, self.show(key)(value))

    def ratio(self, trial: Mapping[str, Any], key: str) -> Figure | None:
        """Return how many times less the trial costs than the original."""
        if not self.original or not self.original.get(key) or not trial["measured"].get(key):
            return None
        value = self.original[key] / trial["measured"][key]
        return Figure(f"ratio.{trial['number']}.{key}", value, times(value))

    def show(self, key: str) -> Callable[[float], str]:
        """Return how a figure of that name is written."""
        if key in COSTS:
            return COSTS[key][1]
        return self.drop_text if key in ("drop", "bound") else format_of(self.task, self.metric)

    def drop_text(self, drop: float, digits: int = 2) -> str:
        """Return a drop: in points of a metric that is a share, else as a share of the quality."""
        if self.in_points:
            return f"{_signed(100 * drop, digits)}\N{NO-BREAK SPACE}points"
        return f"{_signed(100 * drop, digits)}\N{NO-BREAK SPACE}%"

    @property
    def in_points(self) -> bool:
        """Whether a drop is told in points, as :meth:`lighten.tasks.Task.drop` counts it."""
        meaning = self.task["metrics"].get(self.metric, {})
        return meaning.get("format") == "percent" and not self.told.get("lower_is_better")


def read_search(folder: str | Path) -> Search:
    """Read ``search.json`` of a folder.

    Raises:
        UserError: if it is missing, broken, or not what a search writes.
    """
    path = Path(folder) / FILE
    told = read_json(path, made_by="lighten compress")
    if told.get("schema") != SCHEMA or told.get("state") not in STATES:
        raise UserError(f"{path}: not a search of schema {SCHEMA}; make it again with `lighten compress`")
    numbers = [trial.get("number") for trial in told.get("trials") or [] if isinstance(trial, dict)]
    if len(numbers) != len(told.get("trials") or []) or len(set(numbers)) != len(numbers):
        raise UserError(f"{path}: its trials have no numbers of their own; make it again with `lighten compress`")
    return Search(told)


def is_search(folder: str | Path) -> bool:
    """Return whether a folder holds a search."""
    return (Path(folder) / FILE).is_file()


def needs_in_words(search: Search) -> str:
    """Return what was asked for, in half a sentence."""
    needs, parts = search.needs, []
    if needs.get("max_drop") is not None:
        parts.append(f"a drop of {search.drop_text(needs['max_drop'])} at most")
    for key, (noun, show) in COSTS.items():
        value, share = needs.get(key), (needs.get("relative") or {}).get(key)
        of = f" ({percent(share, 0)} of the original’s)" if share is not None and value is not None else ""
        if value is not None:
            parts.append(f"{show(value)} at most" + (f" of {noun}" if key in ("macs", "parameters") else "") + of)
        elif share is not None:
            parts.append(f"{percent(share, 0)} of the original’s {noun} at most")
    return _joined(parts) or "nothing in particular"


def where_timed(search: Search) -> str:
    """Return where latency was measured: runtime, batch, threads."""
    needs = search.needs
    runtime, threads = str(needs.get("runtime", "onnx")), int(needs.get("threads", 1))
    many = "s" if threads != 1 else ""
    return f"{RUNTIMES.get(runtime, runtime)}, batch {needs.get('batch', 1)}, {threads} thread{many}"


def setting_in_words(setting: Mapping[str, Any]) -> str:
    """Return what a trial did to the network."""
    share = float(setting.get("amount") or 0.0)
    of = {"macs": "MACs", "channels": "channels"}.get(str(setting.get("target")), str(setting.get("target")))
    how = ", ".join(str(setting[key]) for key in ("score", "scope") if setting.get(key))
    parts = [f"{percent(share, 0)} of the {of} pruned ({how})" if share else "not pruned"]
    parts.append(QUANTIZED.get(str(setting.get("quantize")), str(setting.get("quantize"))))
    if exclude := list(setting.get("exclude") or []):
        named = ", ".join(exclude[:3]) + (f" and {len(exclude) - 3} more" if len(exclude) > 3 else "")
        parts.append(f"{named} in float")
    if epochs := float(setting.get("epochs") or 0.0):
        parts.append(f"{epochs:g} epochs, {'taught by the original' if setting.get('distil') else 'on labels alone'}")
    return "; ".join(parts)


def seconds_text(value: float) -> str:
    """Return a time: ``75.2`` is ``"1 min 15 s"``."""
    if value < 60:
        return f"{value:.0f}\N{NO-BREAK SPACE}s" if value >= 9.95 else f"{value:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"
    return f"{minutes // 60}\N{NO-BREAK SPACE}h {minutes % 60}\N{NO-BREAK SPACE}min"


def pairs_of(search: Search, key: str) -> list[tuple[Mapping[str, Any], float, float]]:
    """Return trials with what was predicted of them and what was measured."""
    found = [(trial, (trial.get("predicted") or {}).get(key), trial["measured"].get(key)) for trial in search.measured]
    return [(trial, said, is_) for trial, said, is_ in found if said is not None and is_ is not None]


def agreement_of(search: Search, key: str) -> str | None:
    """Return how well predictions of ``key`` ranked the trials and how near they were; ``None`` of fewer than two."""
    pairs = pairs_of(search, key)
    if len(pairs) < 2:
        return None
    rank = spearman([said for _, said, _ in pairs], [found for _, _, found in pairs])
    parts = ["all alike, which no order fits" if rank is None else f"Spearman {_signed(rank, 2)}"]
    front = [pair for pair in pairs if pair[0]["number"] in search.frontier]
    if key == "latency_ms" and front:
        off = median(abs(said / found - 1) for _, said, found in front)
        parts.append(f"on the frontier {percent(off, 1)} off, by the median")
    return f"{len(pairs)} trials: {'; '.join(parts)}"


def spent(search: Search) -> Iterator[tuple[str, float, float]]:
    """Yield what the time went into: name, seconds, share of all."""
    names = {"fit": "fine-tuning", "look": "look at the network", "search": "decisions", "export": "export",
             "measure": "measurements", "confirm": "confirmation"}  # fmt: skip
    seconds = {key: value for key, value in (search.told.get("seconds") or {}).items() if value}
    whole = sum(seconds.values())
    for key in sorted(seconds, key=lambda key: -seconds[key]):
        yield names.get(key, key), seconds[key], seconds[key] / whole


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return f"\N{MINUS SIGN}{text}" if value < 0 and float(text) else text


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
