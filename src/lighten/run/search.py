"""A run that searches: from a recipe that states a need to the smallest and fastest network that meets it."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lighten.delivery.folders.model import CONFIG
from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.measure.measure import measure_run
from lighten.delivery.progress import progress
from lighten.delivery.report.card import write_card
from lighten.delivery.report.publish_search import publish_search
from lighten.delivery.report.search_figures import is_search
from lighten.delivery.report.search_page import write_search_report
from lighten.errors import RecipeError, UserError
from lighten.recipe.schema import Recipe, Trainer
from lighten.run.build import config_of, data_of, seed, student_of
from lighten.run.choose import describe_choice
from lighten.training.preempt import stop_between_steps
from lighten.training.rank import is_rank_zero
from lighten.utils.files import write_whole

LENGTH = ("max_epochs", "max_steps")
"""Settings of the trainer that a search decides itself."""
ORIGINAL = "original"
"""Of a search: the network that came."""


def check_needs(recipe: Recipe) -> None:
    """Read needs and budget of a recipe that searches, before anything is loaded.

    Raises:
        RecipeError: if they make no sense.
    """
    if not recipe.searches:
        return
    from lighten.search.needs import budget_of, needs_of

    try:
        needs_of(recipe.max_drop, recipe.target or None)
        budget_of(recipe.budget)
    except UserError as error:
        raise RecipeError(str(error)) from None


def search_run(recipe: Recipe, folder: Path) -> str | None:
    """Compress the recipe's trained student as its needs say; return why they are not met, if they are not.

    Raises:
        UserError: if the network or the data are not fit for it.
    """
    from lighten.search.compress import compress

    console = Console(quiet=not is_rank_zero())
    console.print(f"run {folder}")
    seed(recipe)
    data = data_of(recipe, workers=recipe.workers)
    if choice := describe_choice(recipe, data) if recipe.student_checkpoint is None else None:
        console.print(choice, highlight=False, markup=False, soft_wrap=True)
    student = student_of(recipe, data, [], folder).eval()
    usual = asdict(Trainer())
    trainer = {k: v for k, v in asdict(recipe.trainer).items() if k not in LENGTH and v != usual[k]}
    try:
        result = compress(
            student, data, max_drop=recipe.max_drop, target=recipe.target or None, budget=recipe.budget, folder=folder,
            seed=recipe.seed, trainer=trainer,
            on_progress=lambda said: console.print(said, highlight=False, markup=False, soft_wrap=True),
        )  # fmt: skip
    finally:
        if is_rank_zero() and is_search(folder) and recipe.logger == "wandb":
            publish_search(folder)
    if not is_rank_zero():
        return None if result.met else not_met(result)
    _deliver(recipe, data, Path(result.folder).parent, folder, console)
    console.print(str(result), highlight=False, markup=False, soft_wrap=True)
    console.print(f"report {write_search_report(folder)}")
    return None if result.met else not_met(result)


def not_met(result: Any) -> str:
    """Return in a line what a search has missed, and where the nearest is."""
    said = [str(reason).rstrip(".") for reason in result.reasons]
    missed = [reason for reason in said if reason.startswith("not met")] or [f"not met: {'; '.join(said)}"]
    return f"{missed[-1]}; it is saved in {result.folder}"


def _deliver(recipe: Recipe, data: Any, best: Path, folder: Path, console: Console) -> None:
    """Make a run folder as every run leaves: original and best network with files, scores and a card."""
    for source, name in ((folder / ORIGINAL, "dense"), (best / "student", "student")):
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
        about = read_json(folder / name / CONFIG, made_by="lighten compress")
        write_json(folder / name / CONFIG, about | config_of(recipe, data))
    for file, name in ((folder / f"{ORIGINAL}.onnx", "dense.onnx"), (best / "student.onnx", "student.onnx")):
        write_whole(folder / name, lambda path, file=file: shutil.copyfile(file, path))  # type: ignore[misc]
    if hasattr(data, "tokenizer"):
        data.tokenizer.save_pretrained(folder / "student")
    stop_between_steps()
    with progress("measure", console, ticks=False) as on_progress:
        measure_run(folder, on_progress=on_progress)
    write_card(folder)
