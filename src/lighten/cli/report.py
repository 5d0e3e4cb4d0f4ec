"""``lighten report``: write the report page of a run."""

import argparse
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_run(add_command(commands, "report", "write report.html", _report, example=RUN, more="for a run or a search"))


def _report(arguments: argparse.Namespace) -> None:
    with errors_of_run(arguments.run, "report"):
        from lighten.delivery.report.page import write_report
        from lighten.delivery.report.search_figures import is_search
        from lighten.delivery.report.search_page import write_search_report

        print((write_search_report if is_search(arguments.run) else write_report)(arguments.run))
