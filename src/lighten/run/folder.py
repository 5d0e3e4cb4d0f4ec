"""The run folder: created once, found again by resumed runs and by other ranks."""

import os
import time
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lighten.delivery.folders.run import write_text
from lighten.errors import RecipeError, UserError
from lighten.recipe.files import load_recipe, to_yaml
from lighten.recipe.schema import CHANGED, Recipe, settings_of
from lighten.run.environment import FOLDER, JOB
from lighten.training.lineage import differing, format_settings

IDENTITY_SETTINGS = (
    "seed",
    "data",
    "teacher",
    "student",
    "optimizer.name",
    "compress.quantize.mode",
    "compress.quantize.ranges",
)
"""Settings, and those that begin so, that decide what a checkpoint holds: they may never differ."""


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
    if _is_the_same(recipe, folder / "recipe.yaml"):
        keep_recipe(recipe, folder)
    os.environ[FOLDER] = str(folder)
    return folder


@rank_zero_only
def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write what the run is asked to do; a changed recipe only once the run has really resumed with it."""
    write_text(folder / "recipe.yaml", to_yaml(recipe))


def _is_the_same(recipe: Recipe, written: Path) -> bool:
    """Refuse to resume a run with other settings, unless asked to."""
    if not written.exists():
        return True
    here, there = settings_of(recipe), settings_of(load_recipe(written))
    keys = differing(here, there)
    if not keys:
        return True
    rooted = [key for key in keys if key.startswith(IDENTITY_SETTINGS)]
    if recipe.resume == CHANGED and not rooted:
        rank_zero_warn(
            f"{written.parent} is resumed with {format_settings(keys, here)}; "
            f"it began with {format_settings(keys, there)}"
        )
        return False
    shown = rooted if recipe.resume == CHANGED else keys
    ways = "" if rooted else ", set resume=changed to resume with these"
    raise RecipeError(
        f"{shown[0]}={here.get(shown[0])}: {written.parent} holds a run with {format_settings(shown, there)}; "
        f"repeat its settings to resume it{ways}, or give another id"
    )
