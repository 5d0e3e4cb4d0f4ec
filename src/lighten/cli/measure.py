"""``lighten measure``: measure size, latency and accuracy of a run.

JSON: what ``scores.json`` holds.
"""

import argparse
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run, shown_progress
from lighten.cli.output import print_json, stdout_aside


def add_parser(commands: Any) -> None:
    """Add the command."""
    summary = "measure size, latency and accuracy: writes scores.json"
    add_run(add_command(commands, "measure", summary, _measure, example=f"{RUN} --json", json=True))


def _measure(arguments: argparse.Namespace) -> None:
    with errors_of_run(arguments.run, "measure"):
        from rich.console import Console

        from lighten.delivery.folders.run import read_json
        from lighten.delivery.measure.measure import measure_run
        from lighten.delivery.report.table import closing_table

        with stdout_aside(arguments.json), shown_progress("measure", ticks=False) as on_progress:
            scores = measure_run(arguments.run, on_progress=on_progress)
        if arguments.json:
            print_json(read_json(arguments.run / "scores.json", made_by="lighten measure RUN"))
        else:
            Console().print(closing_table(scores))
