"""``lighten dashboard``: make a W&B workspace for a project's runs."""

import argparse
from typing import Any

from lighten.cli.arguments import add_command


def add_parser(commands: Any) -> None:
    """Add the command."""
    dashboard = add_command(
        commands, "dashboard", "make a W&B workspace for a project's runs", _dashboard,
        more="student and teacher, compression, speed, system", example="--entity me --project lighten",
    )  # fmt: skip
    dashboard.add_argument("--entity", required=True, help="the W&B user or team that the project belongs to")
    dashboard.add_argument("--project", default="lighten", help="the W&B project (default: lighten, as for runs)")
    dashboard.add_argument("--task", default="classification", help="the task of the runs (default: classification)")
    dashboard.add_argument("--search", action="store_true", help="for searches, where each trial is a run")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON, and send nothing")


def _dashboard(arguments: argparse.Namespace) -> None:
    from lighten.delivery.report.workspace import as_json, publish, workspace

    made = workspace(arguments.entity, arguments.project, task=arguments.task, search=arguments.search)
    print(as_json(made) if arguments.dry_run else publish(made))
