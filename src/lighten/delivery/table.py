"""The closing table: teacher, student and compressed side by side in the terminal."""

from typing import TYPE_CHECKING

from lighten.delivery.figures import MEANING, NAMES, Row, roles, rows, sentence
from lighten.delivery.scores import Scores, reference_of

if TYPE_CHECKING:
    from rich.table import Table


def closing_table(scores: Scores) -> "Table":
    """Return the comparison as a rich table; the last column is the gain of compressed over the reference."""
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
        table.add_row(*_cells(row), style=None if row.gain else "dim", end_section=_ends_section(row))
    return table


def _cells(row: Row) -> list[str]:
    return [row.label, *(cell.text if cell else "–" for cell in row.cells), row.gain.text if row.gain else ""]


def _ends_section(row: Row) -> bool:
    return row.label in {"Macro-F1", "MACs"}


def _caption(scores: Scores) -> str:
    models, comparison = scores["models"], scores["comparison"]
    compressed = models["compressed"]
    assert compressed is not None
    meanings = ", ".join(f"{NAMES[role]}: {MEANING[role]}" for role in roles(scores))
    return (
        f"{compressed['runtime']}, {compressed['threads']} thread(s), models called in turn. "
        f"{comparison['flips']} of {comparison['flips_of']} predictions differ from PyTorch.\n{meanings}."
    )
