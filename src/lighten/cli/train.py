"""From the command line to checked recipes to runs: the door behind ``train.py`` and ``lighten train``.

Exit codes: 0 done, 1 a run that stopped for a reason that one line explains, 2 a recipe that cannot be run, 143 a run
that a signal stopped and that the same command goes on with.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lighten.cli.arguments import STEPS
from lighten.errors import RecipeError, UserError, one_line
from lighten.recipe.checks import RecipeWarning
from lighten.recipe.compose import compose_all, recipe_names
from lighten.recipe.schema import Recipe
from lighten.run.environment import JOB, LAUNCHER
from lighten.training.signals import Preempted, armed, die_with_parent, release

USAGE = """usage: python train.py recipe=NAME [KEY=VALUE ...]
       python train.py -m recipe=NAME,NAME [KEY=VALUE,VALUE ...]

Trains, compresses, exports, measures and reports. Keys are those of the recipes, dotted:
  python train.py recipe=distil_cnn trainer.max_epochs=20 compress.prune.amount=0.4

All that `lighten` does, it does too: python train.py measure RUN, with the data and models that it registers.
"""
_PEERS = "lighten.training.peers"
"""Heavy, and needed only where a fit has loaded it."""


def main(argv: Sequence[str], recipes: Path) -> int:
    """Run the recipes that ``argv`` asks for and return the exit code.

    Args:
        argv: ``recipe=NAME`` and overrides; ``-m`` for every combination of comma-separated values; or a step of
            ``lighten`` and what that takes.
        recipes: the folder of ``NAME.yaml`` files.
    """
    if argv and argv[0] in STEPS:  # of a train.py that knows data and models which `lighten` does not
        from lighten.cli.main import main as step

        release()
        return step(argv, recipes=recipes)
    if {"-h", "--help"} & set(argv):
        print(USAGE + f"\nRecipes: {', '.join(recipe_names(recipes))}")
        return 0
    if LAUNCHER in os.environ and "LOCAL_RANK" in os.environ:
        die_with_parent(int(os.environ[LAUNCHER]))
    with armed():
        return _guarded(lambda: _run_all(_composed(argv, recipes)))


def plan(argv: Sequence[str], recipes: Path, *, as_json: bool = False) -> int:
    """Print what the recipes that ``argv`` asks for would prune and quantize; train nothing. Returns the exit code."""

    def work() -> None:
        jobs = _composed(argv, recipes)
        from lighten.cli.plan import print_plans, print_plans_json

        (print_plans_json if as_json else print_plans)(jobs)

    return _guarded(work)


def _run_all(jobs: Sequence[Recipe]) -> None:
    from lighten.run.pipeline import run

    warnings.formatwarning = cast(Any, _warning_line)  # here, as Lightning sets its own when it is imported
    chosen = os.environ.get(JOB) if "LOCAL_RANK" in os.environ else None
    folders = []
    for number, recipe in enumerate(jobs):
        if chosen in (None, str(number)):
            with _job(number), _leaving_in_order():
                folders.append(run(recipe))
    if chosen is None and os.environ.get("SLURM_PROCID", "0") == "0":
        _compare([folder for folder in folders if (folder / "scores.json").exists()])


def _compare(folders: Sequence[Path]) -> None:
    """Write what a sweep is for beside its runs, and say where."""
    if len(folders) > 1:
        from lighten.delivery.report.compare import compare_runs, summary, write_comparison

        runs = compare_runs(folders)
        print(f"{summary(runs)}\ncomparison {write_comparison(runs)}")


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
    except RecipeError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except UserError as error:
        _ended_by(error)  # other ranks tell it too
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except Preempted as stop:
        return int(stop.code or 0)
    except Exception as error:
        cause = _ended_by(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr, flush=True)
        return 1
    finally:
        if _PEERS in sys.modules:
            sys.modules[_PEERS].told()
    return 0


def _ended_by(error: Exception) -> str | None:
    """Return what became of the process that this one waited for, if that is what ``error`` says."""
    return cast("str | None", sys.modules[_PEERS].cause_of(error)) if _PEERS in sys.modules else None


def _composed(argv: Sequence[str], recipes: Path) -> list[Recipe]:
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
