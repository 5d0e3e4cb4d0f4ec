"""``lighten train`` and ``train.py``: from words to checked recipes to runs.

Exit codes: 0 done, 1 a run that stopped for a reason that one line explains, 2 a recipe that cannot be run, 143 a run
that a signal stopped and that the same command resumes.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lighten.cli.arguments import CODES as COMMON_CODES
from lighten.cli.arguments import NOT_MET, add_command
from lighten.errors import NeedNotMetError, RecipeError, UserError, one_line
from lighten.run.environment import JOB, LAUNCHER
from lighten.training.signals import Preempted, armed, die_with_parent

if TYPE_CHECKING:
    from lighten.recipe.schema import Recipe
    from lighten.recipe.sweep import Sweep

RECIPE_CODES = f"{COMMON_CODES} or recipe"
CODES = f"{RECIPE_CODES},\n{NOT_MET} need not met, 143 stopped by a signal: the same command resumes"


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_settings(
        commands, "train", "train by a recipe, like train.py", codes=CODES,
        more="then compresses, exports, measures and reports", example="recipe=distil_cnn trainer.max_epochs=20",
    )  # fmt: skip


def add_settings(commands: Any, name: str, summary: str, **options: Any) -> None:
    """Add a command whose words are a recipe and its settings; they are read by ``run_words`` of its module."""
    command = add_command(commands, name, summary, None, **options)
    command.add_argument("recipe", metavar="recipe=NAME", help="a recipe that `lighten recipes` lists")
    command.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="other settings, such as compress.prune.amount=0"
    )
    command.add_argument(
        "-m",
        action="store_true",
        help="run each combination of comma-separated values: seed=0,1,2; sweep.trials=N draws N instead",
    )


def run_words(argv: Sequence[str], recipes: Path) -> int:
    """Run the recipes that ``argv`` asks for and return the exit code.

    Args:
        argv: ``recipe=NAME`` and overrides; ``-m`` for every combination of comma-separated values.
        recipes: the folder of ``NAME.yaml`` files.
    """
    if LAUNCHER in os.environ and "LOCAL_RANK" in os.environ:
        die_with_parent(int(os.environ[LAUNCHER]))
    with armed():
        return exit_code(lambda: _train(argv, recipes))


def _train(argv: Sequence[str], recipes: Path) -> None:
    sweep = _sweep_of(argv)
    jobs = [] if sweep else composed(argv, recipes)
    from lighten.training.peers import failures_shared

    with failures_shared():
        if sweep:
            _run_sweep(sweep, recipes)
        else:
            _run_all(jobs)


def _sweep_of(argv: Sequence[str]) -> "Sweep | None":
    if not any(word.startswith("sweep.") for word in argv):
        return None
    from lighten.recipe.sweep import sweep_of

    return sweep_of(argv)


def _run_sweep(sweep: "Sweep", recipes: Path) -> None:
    """Run the trials of a sampler."""
    from lighten.run.sweep import run_sweep

    warnings.formatwarning = cast(Any, _warning_line)
    run_sweep(sweep, lambda words: composed(words, recipes)[0], _one_of_several)


@contextmanager
def _one_of_several(number: int) -> Iterator[None]:
    with _job(number), _leaving_in_order():
        yield


def _run_all(jobs: Sequence["Recipe"]) -> None:
    from lighten.run.pipeline import run

    warnings.formatwarning = cast(Any, _warning_line)  # here, as Lightning sets its own when it is imported
    chosen = os.environ.get(JOB) if "LOCAL_RANK" in os.environ else None
    folders: list[Path] = []
    missed: list[str] = []
    for number, recipe in enumerate(jobs):
        if chosen in (None, str(number)):
            with _job(number), _leaving_in_order():
                try:
                    folders.append(run(recipe))
                except NeedNotMetError as error:  # the others run all the same
                    missed.append(str(error))
    if chosen is None and os.environ.get("SLURM_PROCID", "0") == "0":
        _compare([folder for folder in folders if (folder / "scores.json").exists()])
    if missed:
        raise NeedNotMetError("; ".join(missed))


def _compare(folders: Sequence[Path]) -> None:
    """Write what a sweep is for beside its runs, and say where."""
    if len(folders) > 1:
        from lighten.delivery.report.compare import by_task, compare_runs, summary, write_comparison

        for alike in by_task(folders):
            runs = compare_runs(alike)
            print(f"{summary(runs)}\ncomparison {write_comparison(runs)}")


def exit_code(work: Callable[[], None]) -> int:
    """Do what a command by recipe does; return its exit code, having said in one line why it stopped."""
    try:
        work()
    except RecipeError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except NeedNotMetError as error:
        print(one_line(error), file=sys.stderr)
        return NOT_MET
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except Preempted as stop:
        return int(stop.code or 0)
    return 0


def composed(argv: Sequence[str], recipes: Path) -> list["Recipe"]:
    """Return the recipes that ``argv`` asks for; settings without effect are warned of."""
    from lighten.recipe.checks import RecipeWarning
    from lighten.recipe.compose import compose_all

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        jobs = compose_all(argv, recipes)
    for text in dict.fromkeys(str(n.message) for n in notes if issubclass(n.category, RecipeWarning)):
        print(f"warning: {text}", file=sys.stderr)
    return jobs


@contextmanager
def _job(number: int) -> Iterator[None]:
    """Give one of several runs an environment of its own: strategies leave ranks, ports and a process group."""
    from lighten.training.fit import leave_processes

    before = dict(os.environ)
    os.environ |= {JOB: str(number), LAUNCHER: str(os.getpid())}
    try:
        yield
        leave_processes()
    except Preempted:
        leave_processes()
        raise
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _leaving_in_order() -> Iterator[None]:
    try:
        yield
    except Preempted as stop:
        from lighten.training.preempt import leave

        leave(stop)
        raise


def _warning_line(message: Warning, *_: object) -> str:
    return f"warning: {one_line(message)}\n"
