"""What the parsers of all commands share: how help looks, common arguments, common errors."""

import argparse
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.cli.registered import check_registered
from lighten.errors import UserError
from lighten.utils.files import disk_errors_as_user_errors
from lighten.utils.machine import version_of

if TYPE_CHECKING:
    from lighten.delivery.progress import ProgressCallback

RUN = "runs/distil_cnn/20260101-120000"
"""A run folder, for examples."""
NOT_MET = 4
"""The exit code of a search that did not meet its need."""
CODES = "exit codes: 0 done, 1 stopped (a line says why), 2 wrong arguments"


class _Lines(argparse.HelpFormatter):
    """Wraps each line by itself, so that an example and exit codes begin lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) for line in text.splitlines())

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the longest command, whose indentation is not counted otherwise."""
        super().add_argument(action)
        self._action_max_length += 2 * isinstance(action, argparse._SubParsersAction)


def new_parser(epilog: str) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, still without commands."""
    parser = argparse.ArgumentParser(
        prog="lighten",
        description="Make networks small and fast while they train.\nDetails of a step: lighten STEP --help",
        epilog=epilog,
        formatter_class=_Lines,
    )
    parser.add_argument("--version", action="version", version=f"lighten {version_of('lighten')}")
    return parser


def add_command(
    commands: Any,
    name: str,
    summary: str,
    action: Callable[[argparse.Namespace], object] | None,
    *,
    example: str,
    more: str = "",
    codes: str = CODES,
    json: bool = False,
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        commands: what ``add_subparsers`` has returned.
        name: of the command.
        summary: its line in the help of all.
        action: is called with the parsed arguments; ``None`` where the words are not parsed here.
        example: arguments.
        more: what its own help says beside the summary.
        codes: how it may end.
        json: whether it can print JSON for scripts.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}: {more}" if more else summary,
        epilog=f"example: lighten {name} {example}\n{codes}",
        formatter_class=_Lines,
    )
    command.set_defaults(action=action)
    if json:
        command.add_argument("--json", action="store_true", help="print JSON, and nothing else, to standard output")
    return command


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the run folder that a command works on."""
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder, runs/<recipe>/<id>")


def add_words(option: argparse.Action, words: Callable[[], Sequence[str]]) -> None:
    """Let the shell complete an option's values; they are asked for when a completion script is written."""
    option.words = words  # type: ignore[attr-defined]


@contextmanager
def errors_of_run(run: Path, command: str) -> Iterator[None]:
    """As :func:`errors_of_folder`, of a run; a model or data set that nobody has registered here is named first."""
    try:
        with errors_of_folder(run, command):
            yield
    except UserError:
        check_registered(run, command)
        raise


@contextmanager
def errors_of_folder(folder: Path, command: str) -> Iterator[None]:
    """Say in one line what a command fails on: a folder may come from anyone and hold anything.

    Raises:
        UserError: for any exception but a broken pipe.
    """
    try:
        with disk_errors_as_user_errors(folder):
            yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error}, {Path(last.filename).name} line {last.lineno}"
        raise UserError(f"{folder}: `lighten {command}` cannot read it ({where}); make its files again") from error


@contextmanager
def shown_progress(command: str, *, ticks: bool = True) -> Iterator["ProgressCallback"]:
    """Show on standard error how far a command is."""
    from rich.console import Console

    from lighten.delivery.progress import progress

    with progress(command, Console(stderr=True), ticks=ticks) as on_progress:
        yield on_progress
