"""Where a run lives: one folder for one recipe, found again by whoever belongs to the run."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lighten.delivery.artifacts import write_text
from lighten.errors import UserError
from lighten.launch import JOB
from lighten.recipe import Recipe, RecipeError, load_recipe, to_yaml

FOLDER = "LIGHTEN_RUN_FOLDER"
"""Where a strategy's further processes find the folder that the first one chose."""

FREE = (
    "name",
    "runs",
    "id",
    "logger",
    "workers",
    "delivery",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
)
"""Settings that may differ when a run goes on: they change nothing that is learned."""


def open_folder(recipe: Recipe) -> Path:
    """Make the run's folder, or find it again, and return it: ``runs/<recipe>/<id>``.

    Without an ``id`` it is named by the Slurm job, or by the time. Of several runs in a row each has its own.

    Raises:
        RecipeError: if the folder holds a run of another recipe, or several processes cannot agree on one.
        UserError: if it cannot be made.
    """
    if FOLDER in os.environ and "LOCAL_RANK" in os.environ:
        return Path(os.environ[FOLDER])
    name = recipe.id or os.environ.get("SLURM_JOB_ID")
    if name is None and "LOCAL_RANK" in os.environ:
        raise RecipeError("id=null: several processes were started together and need one folder; give id=NAME")
    number = os.environ.get(JOB, "0")
    fixed = name and (name if number == "0" else f"{name}-{number}")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(recipe.runs) / recipe.name / (fixed or stamp)
    try:
        if fixed is None and folder.exists():
            folder = folder.with_name(f"{stamp}-{os.getpid()}")
        folder.mkdir(parents=True, exist_ok=fixed is not None)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); set runs to another folder") from None
    _refuse_another(recipe, folder / "recipe.yaml")
    if getattr(rank_zero_only, "rank", 0) == 0:
        write_text(folder / "recipe.yaml", to_yaml(recipe))
    os.environ[FOLDER] = str(folder)
    return folder


def _refuse_another(recipe: Recipe, written: Path) -> None:
    """Refuse to go on in the folder of a run that was asked for something else."""
    if not written.exists():
        return
    here, there = (dict(_leaves(asdict(r))) for r in (recipe, load_recipe(written)))
    differ = [key for key in here | there if here.get(key) != there.get(key) and not key.startswith(FREE)]
    if differ:
        was = ", ".join(f"{key}={there.get(key)}" for key in differ[:3])
        raise RecipeError(
            f"{differ[0]}={here.get(differ[0])}: {written.parent} holds a run with {was}; "
            "repeat its settings to go on with it, or give another id"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
