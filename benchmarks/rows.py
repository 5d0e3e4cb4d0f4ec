"""Rows of the table that ``python -m benchmarks`` writes: what a script measured of one claim, in one form for all.

A script that gets ``--json PATH`` notes each row as soon as it has it, so that what a time limit breaks off keeps what
was measured until then.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One claim, measured side by side.

    Attributes:
        part: which part of the table it belongs to.
        claim: what was measured, on what.
        unit: of all figures.
        ours: lighten's figure, or in a line why there is none.
        peers: the others' figures by name, or in a line why there is none.
        spread: by name, ``lighten`` for ours: the standard deviation over seeds, or half of what lies between the tenth
            and the ninetieth of a hundred repeats; of latencies, how far the ninetieth is above the median.
        better: ``lower`` or ``higher``.
        command: what makes it.
    """

    part: str
    claim: str
    unit: str
    ours: float | str
    peers: Mapping[str, float | str] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    better: str = "lower"
    command: str = ""


def add_row(path: Path | None, row: Row) -> None:
    """Add a row to a file, in place of an earlier one of the same claim; nothing where there is no path."""
    if path is None:
        return
    known = {earlier.claim: earlier for earlier in (read(path) if path.exists() else ())}
    known[row.claim] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in known.values()], indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def command() -> str:
    """Return the command that this process runs, without ``--json`` and its path."""
    words = sys.argv[1:]
    for option in ("--json", "--rows"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds; 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def width(values: Sequence[float]) -> float:
    """Return half of what lies between the tenth and the ninetieth of a hundred repeats; 0 of one."""
    if len(values) < 2:
        return 0.0
    low, *_, high = statistics.quantiles(values, n=10)
    return (high - low) / 2
