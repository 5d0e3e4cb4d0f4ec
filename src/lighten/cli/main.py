"""The entry point of ``lighten STEP`` and of ``python train.py``.

Exit codes: 0 done, 1 stopped for a reason that one line explains, 2 wrong arguments or a wrong recipe, 4 a search that
did not meet its need, 143 a run that a signal stopped and that the same command resumes. With ``--json`` a command
prints JSON, and nothing else, to standard output; progress and errors go to standard error.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lighten.cli.arguments import NOT_MET, new_parser
from lighten.errors import NeedNotMetError, UserError, one_line
from lighten.recipe.find import recipe_files
from lighten.training.signals import release

COMMANDS = (
    "train", "plan", "recipes", "shrink", "export", "measure", "card", "report", "verify", "compare", "predict",
    "quantize", "compress", "push", "dashboard", "init", "doctor", "completion",
)  # fmt: skip
"""Each is a file beside this one, with its parser (``add_parser``) and its action."""

RECIPES = Path("recipes")
"""Where one's own recipes are looked for, as ``train.py`` does beside itself; lighten's own are always there."""


def main(argv: Sequence[str] | None = None, *, recipes: Path = RECIPES, default: str | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; ``None`` takes the command line's.
        recipes: a folder of ``NAME.yaml`` files, beside those that come with lighten; it need not exist.
        default: the command where ``argv`` begins with none.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if default is not None and argv[:1] not in [[name] for name in COMMANDS]:
        argv.insert(0, default)
    elif default is not None:  # a `train.py` holds signals back until its run can answer them
        release()
    if argv[:1] in (["train"], ["plan"]) and not {"-h", "--help"} & set(argv):
        return int(_module(argv[0]).run_words(argv[1:], recipes))
    arguments = parser(recipes).parse_args(argv)
    try:
        arguments.action(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except NeedNotMetError as error:
        print(one_line(error), file=sys.stderr)
        return NOT_MET
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def parser(recipes: Path = RECIPES) -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = new_parser(f"example: lighten train recipe=smoke\n{_module('train').CODES}")
    whole.set_defaults(recipes=recipes)
    commands = whole.add_subparsers(dest="step", required=True, metavar="STEP")
    for name in COMMANDS:
        _module(name).add_parser(commands)
    train = commands.choices["train"]
    train.epilog = f"{train.epilog}\nrecipes: {', '.join(recipe_files(recipes))}"
    return whole


def _module(name: str) -> Any:
    return import_module(f"lighten.cli.{name}")
