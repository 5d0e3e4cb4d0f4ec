"""``lighten shrink``: remove what a run's plan prunes."""

import argparse
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run


def add_parser(commands: Any) -> None:
    """Add the command."""
    summary = "remove the pruned channels from the last checkpoint; writes student/"
    add_run(add_command(commands, "shrink", summary, _shrink, example=RUN))


def _shrink(arguments: argparse.Namespace) -> None:
    with errors_of_run(arguments.run, "shrink"):
        from lighten.delivery.folders.student import shrink_run

        print(shrink_run(arguments.run))
