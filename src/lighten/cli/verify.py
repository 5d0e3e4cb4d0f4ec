"""``lighten verify``: check what a run claims.

JSON: ``{"run", "good", "checks"}`` with ``{"name", "claimed", "found", "good", "note"}`` of each claim. The exit
code is 1 where one does not hold.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lighten.cli.arguments import RUN, add_command, add_run, errors_of_run, shown_progress
from lighten.cli.output import print_json, stdout_aside
from lighten.errors import UserError


def add_parser(commands: Any) -> None:
    """Add the command."""
    summary = "check the claims in scores.json"
    add_run(add_command(commands, "verify", summary, _verify, example=f"{RUN} --json", json=True))


def _verify(arguments: argparse.Namespace) -> None:
    """Print every claim with what was found.

    Raises:
        UserError: if one does not hold.
    """
    run = arguments.run
    with errors_of_run(run, "verify"):
        from lighten.delivery.verify import failures, verify_run

        with stdout_aside(arguments.json), shown_progress("verify") as on_progress:
            checks = verify_run(run, recipe=_recipe_of(run), on_progress=on_progress)
        bad = failures(checks)
        if arguments.json:
            print_json({"run": str(run), "good": not bad, "checks": [asdict(check) for check in checks]})
        else:
            width = max(len(check.name) for check in checks)
            for check in checks:
                mark = "note" if check.note else "ok" if check.good else "BAD"
                print(f"{mark:4}  {check.name:{width}}  {check.claimed}  {check.found}")
        if bad:
            raise UserError(f"{run}: {len(bad)} of {len(checks)} claims do not hold; {bad[0]}")


def _recipe_of(run: Path) -> str | None:
    """Return the SHA-256 of what a run was asked for; ``None`` if that cannot be read."""
    from lighten.recipe.files import load_recipe
    from lighten.recipe.schema import settings_of
    from lighten.utils.fingerprint import fingerprint_of

    path = run / "recipe.yaml"
    return fingerprint_of(**settings_of(load_recipe(path))) if path.is_file() else None
