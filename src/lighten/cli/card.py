"""``lighten card``: write the model card of a run."""

import argparse
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_run(add_command(commands, "card", "write the model card, student/README.md", _card, example=RUN))


def _card(arguments: argparse.Namespace) -> None:
    with errors_of_run(arguments.run, "card"):
        from lighten.delivery.report.card import write_card

        print(write_card(arguments.run))
