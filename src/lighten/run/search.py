"""A run that searches: from a recipe that states a need to the smallest and fastest network that meets it."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lighten.delivery.folders.model import CONFIG
from lighten.delivery.report.card import write_card
from lighten.delivery.report.publish_search import publish_search
from lighten.delivery.report.search_figures import is_search
from lighten.delivery.report.search_page import write_search_report
from lighten.errors import RecipeError, UserError
from lighten.recipe.schema import Recipe, Trainer
from lighten.run.build import data_of, seed, student_of
from lighten.run.choose import describe_choice
from lighten.training.rank import is_rank_zero
from lighten.utils.files import write_whole

LENGTH = ("max_epochs", "max_steps")
"""Settings of the trainer that a search decides itself."""
DELIVERED = ("student", "student.onnx", "scores.json")
"""What the best trial has, and with it the run folder, as that of every run."""


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
    _deliver(result, folder)
    console.print(str(result), highlight=False, markup=False)
    console.print(f"report {write_search_report(folder)}")
    return None if result.met else not_met(result)


def not_met(result: Any) -> str:
    """Return in a line what a search has missed, and where the nearest is."""
    said = [str(reason).rstrip(".") for reason in result.reasons]
    missed = [reason for reason in said if reason.startswith("not met")] or [f"not met: {'; '.join(said)}"]
    return f"{missed[-1]}; it is saved in {result.folder}"


def _deliver(result: Any, folder: Path) -> None:
    """Put the best network where every run has it, so that each later step finds it."""
    best = Path(result.folder).parent
    for name in DELIVERED:
        source, target = best / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            write_whole(target, lambda path, source=source: shutil.copyfile(source, path))  # type: ignore[misc]
    if (folder / "scores.json").exists() and (folder / "student" / CONFIG).exists():
        write_card(folder)
