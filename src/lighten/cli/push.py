"""``lighten push``: upload the model of a run to the Hugging Face Hub."""

import argparse
from pathlib import Path
from typing import Any

from lighten.cli.arguments import RUN, add_command


def add_parser(commands: Any) -> None:
    """Add the command."""
    push = add_command(
        commands, "push", "upload the model of a run to the Hugging Face Hub", _push,
        more="student/, its card and its files; the token is $HF_TOKEN or that of `hf auth login`",
        example=f"{RUN} me/tiny --private",
    )  # fmt: skip
    push.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a model folder")
    push.add_argument("repo", metavar="REPO", help="NAME/REPO on the hub; created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private")


def _push(arguments: argparse.Namespace) -> None:
    from lighten.delivery.folders.hub import push_to_hub

    run, student = arguments.run, arguments.run / "student"
    print(push_to_hub(student if student.is_dir() else run, arguments.repo, private=arguments.private))
