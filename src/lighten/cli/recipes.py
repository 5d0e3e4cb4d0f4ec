"""``lighten recipes``: list the recipes.

JSON: an array of ``{"name", "for", "command", "file"}``: the first two comments of each recipe, and its path.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from lighten.cli.arguments import add_command
from lighten.cli.output import print_json
from lighten.errors import UserError
from lighten.recipe.find import recipe_files


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands, "recipes", "list the recipes in ./recipes and lighten's own", _list,
        more="and what each is for", example="--json", json=True,
    )  # fmt: skip


def _list(arguments: argparse.Namespace) -> None:
    files = list(recipe_files(arguments.recipes).values())
    if not files:
        raise UserError("lighten's own recipes are not where they were installed; install it again")
    rows = [(path, [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines()]) for path in files]
    if arguments.json:
        keys = ("name", "for", "command", "file")
        print_json([dict(zip(keys, [path.stem, *_two(lines), str(path)], strict=True)) for path, lines in rows])
        return
    width = max(len(path.stem) for path in files)
    for path, lines in rows:
        print(f"{path.stem:{width}}  {_two(lines)[0]}")


def _two(lines: Sequence[str]) -> list[str]:
    """Return the first two lines, empty where there are fewer."""
    return [*lines[:2], "", ""][:2]
