"""From recipe files and command-line words to checked recipes, by Hydra."""

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighten.errors import RecipeError, did_you_mean, shown
from lighten.recipe.checks import check, check_folder_name
from lighten.recipe.find import recipe_files
from lighten.recipe.schema import Recipe
from lighten.utils.safe_yaml import check_plain, read_plain
from lighten.utils.typecheck import type_error

_OPEN = (
    "data_options.", "teacher_options.", "student_options.", "distil.losses.", "distil.loss_options.", "distil.layers.",
    "distil.temperature.", "target.",
)  # fmt: skip
"""Keys whose own keys are those of the choice that they belong to."""

MAX_WORD = 4000
"""Characters of one word of the command line, which takes Hydra a second to read."""
MAX_RUNS = 1000


def recipe_names(recipes: Path) -> list[str]:
    """Return the names of the recipes of a folder, and of those that come with lighten."""
    return list(recipe_files(recipes))


def compose_all(argv: Sequence[str], recipes: Path) -> list[Recipe]:
    """Return the checked recipes that ``argv`` asks for: one, or with ``-m`` every combination of its values.

    Raises:
        RecipeError: on anything that is wrong with any of them, in one line.
    """
    texts = [text for text in argv if text not in ("-m", "--multirun")]
    overrides = [_parse(text) for text in texts]
    for text, override in zip(texts, overrides, strict=True):
        if override.is_sweep_override() and len(texts) == len(argv):
            raise RecipeError(f"{text}: several values, expected one; add -m to run each of them")
    values = list(map(_values, texts, overrides))
    if (count := math.prod(map(len, values))) > MAX_RUNS:
        raise RecipeError(f"-m: {count:,} runs or more, expected {MAX_RUNS:,} at most; give fewer values")
    jobs = itertools.product(*values)
    return [_compose(job, recipes) for job in jobs]


def read_recipe(name: str, recipes: Path) -> DictConfig:
    """Return what a recipe's file says, if the schema allows it.

    Raises:
        RecipeError: if there is no such recipe, it is not YAML, or it holds more than plain values for known keys.
    """
    files = recipe_files(recipes)
    if name not in files:
        raise RecipeError(f"recipe={name!r}: no such recipe; {did_you_mean(name, files)}")
    check_folder_name("recipe", name)
    tree = read_plain(files[name])
    wrong = type_error(Recipe, tree)
    if wrong:
        raise RecipeError(f"{name}.yaml: {wrong}")
    return OmegaConf.create(tree)


def _parse(text: str) -> Override:
    expected = "expected KEY=VALUE" if not text.startswith("-") else "expected -m, -h or KEY=VALUE"
    if len(text) > MAX_WORD:
        raise RecipeError(f"{shown(repr(text))}: has {len(text):,} characters, {expected} of at most {MAX_WORD:,}")
    try:
        override = OverridesParser.create().parse_overrides([text])[0]
    except (HydraException, ValueError, RecursionError):  # also numbers and levels beyond what Python takes
        raise RecipeError(f"{shown(repr(text))}: cannot be read, {expected}") from None
    key = override.key_or_group
    if override.is_delete():
        raise RecipeError(f"{text}: keys cannot be taken away; set null where the recipe allows it")
    if override.package is not None or not key:
        raise RecipeError(f"{text}: no key of a recipe, expected KEY=VALUE with a key that recipes have")
    if override.is_add() and not f"{key}.".startswith(_OPEN):
        plain = key != "recipe" and not override.is_sweep_override()
        wrong = type_error(Recipe, _tree(key, override.value())) if plain else None
        raise RecipeError(wrong or f"{text}: {key} is there already; leave the + away")
    return override


def _values(text: str, override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [text]
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_RUNS + 1))
    except (HydraException, ValueError):
        ways = "expected values with commas, choice(…) or range(…)"
        raise RecipeError(f"{text}: cannot be enumerated, {ways}; or add sweep.trials=N to draw from it") from None
    return [f"{override.get_key_element()}={value}" for value in values]


def _compose(job: Sequence[str], recipes: Path) -> Recipe:
    overrides = [_parse(text) for text in job]
    name = _recipe_name(overrides, recipes)
    settings = [override for override in overrides if override.key_or_group != "recipe"]
    for override in settings:
        wrong = type_error(Recipe, _tree(override.key_or_group, override.value()))
        if wrong:
            raise RecipeError(wrong)
    store = ConfigStore.instance()
    store.store(name="schema", node=Recipe)
    store.store(group="recipe", name=name, node=read_recipe(name, recipes), package="_global_")
    logging.getLogger("hydra").setLevel(logging.ERROR)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("lighten.recipe.conf", version_base="1.3"):
            composed = compose("config", [f"recipe={name}", *map(_as_hydra_wants, settings)])
        composed.name = name
        check_plain(OmegaConf.to_container(composed, resolve=False))
        recipe = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, HydraException) as error:
        raise RecipeError(_reason(error)) from None
    assert isinstance(recipe, Recipe)
    for role in ("data", "teacher", "student"):  # null takes away an option that a recipe's file sets
        options = getattr(recipe, f"{role}_options")
        setattr(recipe, f"{role}_options", {key: value for key, value in options.items() if value is not None})
    losses = recipe.distil.losses
    recipe.distil.losses = {name: weight for name, weight in losses.items() if weight is not None}
    return check(recipe)


def _recipe_name(overrides: Sequence[Override], recipes: Path) -> str:
    given = [override.value() for override in overrides if override.key_or_group == "recipe"]
    if len(given) != 1:
        names = ", ".join(recipe_names(recipes))
        raise RecipeError(f"recipe is given {len(given)} times, expected recipe=NAME once. Choices: {names}")
    return str(given[0])


def _as_hydra_wants(override: Override) -> str:
    """Return the override's text with ``++`` where the recipe may or may not have the key already."""
    text = str(override.input_line).lstrip("+")
    return f"++{text}" if f"{override.key_or_group}.".startswith(_OPEN) else text


def _tree(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    first = str(cause).strip().partition("\n")[0]
    return f"{key}: {first}" if key else first
