"""Result of a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from torch import nn

from lighten.search.frontier import Point


@dataclass(frozen=True)
class Result:
    """The result of a search; prints as a short table.

    Attributes:
        met: whether all needs are met; for the drop, its upper bound on samples not used for any choice.
        folder: the model folder of the network that was chosen.
        path: its file.
        scores: as in ``scores.json``.
        reasons: sentences: what was chosen and why, what is not met and what would help.
        frontier: the Pareto front: trials that no other trial beats; each point names its trial's folder.
        search: the content of ``search.json``.
    """

    met: bool
    folder: Path
    path: Path
    scores: Mapping[str, Any]
    reasons: Sequence[str]
    frontier: Sequence[Point]
    search: Mapping[str, Any] = field(repr=False)
    load: Callable[[], nn.Module] = field(repr=False)

    @property
    def model(self) -> nn.Module:
        """The chosen network in PyTorch."""
        return self.load()

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        metric = self.search["metric"]
        table = Table("", metric, "drop", "file", "latency", "MACs", box=None, pad_edge=False)
        original = self.search["original"]
        table.add_row("original", f"{original['metric']:.4g}", "", *_figures(original))
        for point in self.frontier:
            mark = " *" if point.trial == self.search["chosen"] else ""
            table.add_row(
                f"trial {point.trial}{mark}",
                f"{point.metric:.4g}",
                f"{100 * point.drop:.2f} %",
                *_figures(point.figures),
            )
        console = Console(file=StringIO(), width=100, color_system=None)
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        lines = [line.rstrip() for line in text.splitlines()]
        return "\n".join([*lines, *self.reasons])


def _figures(figures: Mapping[str, float]) -> list[str]:
    return [
        f"{figures['bytes'] / 1000:.1f} kB" if "bytes" in figures else "",
        f"{figures['latency_ms']:.3g} ms" if "latency_ms" in figures else "",
        f"{figures['macs'] / 1e6:.3g} M" if "macs" in figures else "",
    ]
