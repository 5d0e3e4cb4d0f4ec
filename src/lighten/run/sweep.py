"""A sweep: trials one after the other, here and in every other process that runs the same sweep at the same time."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from lighten.delivery.measure.scores import read_scores
from lighten.delivery.report.compare import PAGE, by_task, compare_runs, write_comparison
from lighten.errors import RecipeError, UserError, one_line
from lighten.recipe.schema import Recipe
from lighten.recipe.sweep import Sweep
from lighten.run.pipeline import run
from lighten.search.hopeless import HopelessError, StopHopeless
from lighten.search.study import Claimed, Study
from lighten.utils.files import DiskError

WORDS = "LIGHTEN_TRIAL"
"""The words of the trial that a strategy's further processes belong to."""
FOLDER = "sweeps"
"""In ``runs``, where studies are."""

Compose = Callable[[Sequence[str]], Recipe]
InJob = Callable[[int], AbstractContextManager[None]]


def run_sweep(sweep: Sweep, compose: Compose, in_job: InJob) -> Path | None:
    """Run trials until there are as many as asked for, and return the page that compares them, if there is one.

    The same words take up a sweep that was stopped; processes that are given the same ``id`` share one.

    Args:
        sweep: what is asked for.
        compose: makes a checked recipe of words.
        in_job: gives one of several runs an environment of its own.

    Raises:
        RecipeError: if not even the first combination is a recipe.
        UserError: if no trial came to an end, or the study's folder is another sweep's.
    """
    if WORDS in os.environ and "LOCAL_RANK" in os.environ:
        return _follow(compose)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise RecipeError("sweep: one process a trial, but Slurm starts several; ask for --ntasks-per-node=1")
    first = compose(sweep.drawn(sweep.first()))
    name = first.id or sweep.identity
    study = Study(Path(first.runs) / FOLDER / name, sweep)
    why = ""
    while (claimed := study.next()) is not None:
        words = sweep.drawn(claimed.values)
        drawn = " ".join(words[len(sweep.words) :])
        print(f"trial {claimed.number + 1} of {sweep.trials}: {drawn}{' (resumed)' if claimed.resumed else ''}")
        why = _try(study, claimed, words, name, compose, in_job) or why
        _write_page(study)
    return _close(study, why)


def _try(
    study: Study, claimed: Claimed, words: Sequence[str], name: str, compose: Compose, in_job: InJob
) -> str | None:
    """Run a trial and return why it came to nothing, if so; one that is stopped by a signal stays to be resumed."""
    done = False
    try:
        recipe = replace(compose(words), id=name)
        with in_job(claimed.number):
            os.environ[WORDS] = json.dumps([*words, f"id={name}"])
            folder = run(recipe, callbacks=[StopHopeless(claimed.report)])
        study.complete(claimed, _values(folder), folder)
        done = True
    except DiskError:
        raise
    except UserError as error:
        why = one_line(error)
        print(f"trial {claimed.number + 1} dropped: {why}")
        study.drop(claimed, why, hopeless=isinstance(error, HopelessError))
        done = True
        return why
    except Exception as error:  # a bug: whoever repeats the command is not to meet it again in this trial
        study.drop(claimed, one_line(error), hopeless=False)
        done = True
        raise
    finally:
        if not done:
            claimed.release()
    return None


def _follow(compose: Compose) -> Path | None:
    """Be a further process of a trial."""
    with suppress(HopelessError):  # the first process says so
        run(compose(json.loads(os.environ[WORDS])), callbacks=[StopHopeless(None)])
    return None


def _values(folder: Path) -> tuple[float, float, float]:
    """Return what a run came to: metric, more for better, latency of single samples in milliseconds, bytes."""
    scores = read_scores(folder)
    model = scores["models"]["compressed"] or scores["models"]["student"]
    assert model is not None
    task = scores["task"]
    metric = float(model[task["metric"]])
    return (
        -metric if task["lower_is_better"] else metric,
        float(model["latency_ms"]["batch_1"]["median"]),
        float(model["bytes"]),
    )


def _write_page(study: Study) -> Path | None:
    folders = [folder for folder in study.folders() if (folder / "scores.json").exists()]
    groups = by_task(folders)
    return write_comparison(compare_runs(groups[0]), study.folder / PAGE) if groups else None


def _close(study: Study, why: str) -> Path | None:
    counts, best = study.counts(), study.best()
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if not best:
        if counts["running"]:
            print(f"sweep {study.folder}: {said}")
            return None
        raise UserError(f"sweep {study.folder}: no trial came to an end ({said}); the last: {why or 'see its trials'}")
    trials = study.study.trials
    print(f"sweep {study.folder}: {said}")
    for number in best:
        drawn = " ".join(f"{key}={value}" for key, value in trials[number].params.items())
        print(f"best: trial {number + 1}, {drawn}, {trials[number].user_attrs['folder']}")
    page = _write_page(study)
    if page is not None:
        print(f"comparison {page}")
    return page
