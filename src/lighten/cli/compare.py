"""``lighten compare``: several runs in a table and a page.

JSON: an array, of each run ``name``, ``folder``, ``differs``, ``pareto``, ``data``, ``machine`` and the figures that
``--sort`` knows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighten.cli.arguments import add_command, add_words, errors_of_folder


def add_parser(commands: Any) -> None:
    """Add the command."""
    compare = add_command(
        commands, "compare", "compare runs in a table and on a page", _compare, json=True,
        more="writes compare.html beside them, with the Pareto front", example="runs/distil_cnn/* --sort bytes",
    )  # fmt: skip
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, runs/<recipe>/<id>")
    sort = compare.add_argument("--sort", help="kept, bytes, latency, faster, a metric, … (default: leading metric)")
    add_words(sort, _columns)
    compare.add_argument(
        "--out", type=Path, metavar="FILE", help="path of the page (default: in the runs' common folder)"
    )


def _columns() -> Sequence[str]:
    from lighten.delivery.report.columns import COLUMNS

    return ("name", *(column.name for column in COLUMNS))


def _compare(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from lighten.delivery.report.compare import (
        compare_runs,
        comparison_json,
        comparison_table,
        summary,
        write_comparison,
    )

    with errors_of_folder(arguments.runs[0].parent, "compare"):
        runs = compare_runs(arguments.runs, sort=arguments.sort)
        page = write_comparison(runs, arguments.out, sort=arguments.sort)
    if arguments.json:
        print(comparison_json(runs))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(comparison_table(runs))
        print(f"{summary(runs)}\n{page}")
