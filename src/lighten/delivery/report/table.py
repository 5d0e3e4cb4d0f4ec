"""The closing table: teacher, student and compressed side by side in the terminal."""

from typing import TYPE_CHECKING

from lighten.delivery.measure.scores import Scores, reference_of
from lighten.delivery.report import int8 as quantized
from lighten.delivery.report.figures import MEANING, NAMES, FigureRow, differing, last_metric, roles, rows, sentence

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table


def closing_table(scores: Scores) -> "Group":
    """Return what ``rich`` prints at the end of a run.

    That is the comparison, its last column the gain of compressed over the reference; then, where they were measured,
    the file in each runtime and int8 against float32; and last, in red, what is wrong with the int8 file.
    """
    from rich.console import Group
    from rich.text import Text

    runtimes, int8_vs_float = quantized.runtimes(scores), quantized.int8_vs_float(scores)
    parts: list[RenderableType] = [_comparison(scores)]
    if runtimes and runtimes.targets:
        parts += [Text(), _runtimes(runtimes)]
    if runtimes:
        parts += [Text(f"{name} was not measured: {how}", style="dim") for name, how in runtimes.missing]
    if int8_vs_float:
        parts.append(Text(quantized.plain(int8_vs_float)))
    parts += [Text(f"Warning: {warning}", style="bold red") for warning in quantized.warnings_of(scores)]
    return Group(*parts)


def _comparison(scores: Scores) -> "Table":
    from rich.table import Table

    reference, _ = reference_of(scores)
    table = Table(
        title=sentence(scores),
        title_style="bold",
        title_justify="left",
        caption=_caption(scores),
        caption_justify="left",
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("")
    for role in roles(scores):
        table.add_column(NAMES[role], justify="right", style="bold green" if role == "compressed" else None)
    table.add_column(f"vs {NAMES[reference].lower()}", justify="right")
    for row in rows(scores):
        style = None if row.gain else "dim"
        table.add_row(*_cells(row), style=style, end_section=_ends_section(row, last_metric(scores)))
    return table


def _runtimes(runtimes: quantized.Runtimes) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="In each runtime", title_style="bold", title_justify="left", header_style="bold", pad_edge=False
    )
    table.add_column("")
    for target in runtimes.targets:
        table.add_column(Text(target.name), justify="right")
    for label, cells in runtimes.rows:
        style = "dim" if label == "90th percentile" else None
        table.add_row(label, *(quantized.plain(cell) for cell in cells), style=style)
    return table


def _cells(row: FigureRow) -> list[str]:
    return [row.label, *(cell.text if cell else "–" for cell in row.cells), row.gain.text if row.gain else ""]


def _ends_section(row: FigureRow, last: str) -> bool:
    return row.label in {last, "MACs"}


def _caption(scores: Scores) -> str:
    models, comparison = scores["models"], scores["comparison"]
    compressed = models["compressed"]
    assert compressed is not None
    meanings = ", ".join(f"{NAMES[role]}: {MEANING[role]}" for role in roles(scores))
    pair = differing(scores)
    flips = "" if pair is None else f"{pair[0].text} of {pair[1].text} predictions differ from PyTorch."
    off = "" if pair or "logit_error" not in comparison else f"Answers are {comparison['logit_error']:.2%} off PyTorch."
    where = f"{compressed['runtime']}, {compressed['threads']} thread(s), models called in turn."
    return f"{where} {flips}{off}\n{meanings}."
