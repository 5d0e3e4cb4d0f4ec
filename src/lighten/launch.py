"""From the command line to checked recipes to runs: the door behind ``train.py`` and ``lighten train``.

Exit codes: 0 done, 1 a run that stopped for a reason that one line explains, 2 a recipe that cannot be run.
"""

import itertools
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lighten.errors import UserError, did_you_mean
from lighten.recipe import Recipe, RecipeError, check

USAGE = """usage: python train.py recipe=NAME [KEY=VALUE ...]
       python train.py -m recipe=NAME,NAME [KEY=VALUE,VALUE ...]

Trains, compresses, exports, measures and reports. Keys are those of the recipes, dotted:
  python train.py recipe=distil_cnn trainer.max_epochs=20 compress.prune.amount=0.4
"""
JOB = "LIGHTEN_JOB"
"""Which of several recipes a process that a strategy starts belongs to."""

_OPEN = ("data_options", "teacher_options", "student_options")
"""Keys whose own keys are those of the choice that they belong to."""


def main(argv: Sequence[str], recipes: Path) -> int:
    """Run the recipes that ``argv`` asks for and return the exit code.

    Args:
        argv: ``recipe=NAME`` and overrides; ``-m`` for every combination of comma-separated values.
        recipes: the folder of ``NAME.yaml`` files.
    """
    if {"-h", "--help"} & set(argv):
        print(USAGE + f"\nRecipes: {', '.join(recipe_names(recipes))}")
        return 0
    try:
        jobs = compose_all(argv, recipes)
        from lighten.run import run

        chosen = os.environ.get(JOB) if "LOCAL_RANK" in os.environ else None
        for number, recipe in enumerate(jobs):
            if chosen in (None, str(number)):
                os.environ[JOB] = str(number)
                run(recipe)
    except RecipeError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    finally:
        if "LOCAL_RANK" not in os.environ:
            os.environ.pop(JOB, None)
    return 0


def recipe_names(recipes: Path) -> list[str]:
    """Return the names of the recipes in a folder."""
    return sorted(path.stem for path in recipes.glob("*.yaml"))


def compose_all(argv: Sequence[str], recipes: Path) -> list[Recipe]:
    """Return the checked recipes that ``argv`` asks for, one unless it begins with ``-m``.

    Raises:
        RecipeError: on anything that is wrong with any of them, in one line.
    """
    multirun = bool({"-m", "--multirun"} & set(argv))
    texts = [text for text in argv if text not in ("-m", "--multirun")]
    overrides = _parse(texts)
    swept = [override for override in overrides if override.is_sweep_override()]
    if swept and not multirun:
        raise RecipeError(f"{swept[0].input_line}: several values, expected one; add -m to run each of them")
    return [_compose(list(job), recipes) for job in itertools.product(*map(_values, overrides))]


def _parse(texts: Sequence[str]) -> list[Override]:
    overrides = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException:
            raise RecipeError(f"{text!r}: cannot be read, expected KEY=VALUE") from None
        _check_key(override, text)
        overrides.append(override)
    if not any(override.key_or_group == "recipe" for override in overrides):
        raise RecipeError("recipe is missing, expected recipe=NAME as the first argument")
    return overrides


def _check_key(override: Override, text: str) -> None:
    key = override.key_or_group
    if override.is_delete():
        raise RecipeError(f"{text}: keys cannot be taken away; set null where the recipe allows it")
    if key == "recipe" or any(key == name or key.startswith(f"{name}.") for name in _OPEN):
        return
    known = _keys(OmegaConf.structured(Recipe))
    if key not in known or key == "name":
        raise RecipeError(f"{key} is no key of a recipe; {_nearest(key, known)}")
    if override.is_add():
        raise RecipeError(f"{text}: {key} is there already; leave the + away")


def _values(override: Override) -> list[str]:
    text = str(override.input_line)
    if override.is_sweep_override():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [text]


def _compose(texts: list[str], recipes: Path) -> Recipe:
    name = next(text.partition("=")[2] for text in texts if text.startswith("recipe="))
    _store(name, recipes)
    overrides = [f"++{t.lstrip('+')}" if t.lstrip("+").startswith(tuple(f"{o}." for o in _OPEN)) else t for t in texts]
    logging.getLogger("hydra").setLevel(logging.ERROR)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("lighten.conf", version_base="1.3"):
            composed = compose("config", overrides)
        composed.name = name
        _refuse_resolvers(composed)
        recipe = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise RecipeError(_explain(error)) from None
    except HydraException as error:
        cause = error.__cause__
        line = _explain(cause) if isinstance(cause, OmegaConfBaseException) else _one_line(error)
        raise RecipeError(line) from None
    assert isinstance(recipe, Recipe)
    return check(recipe)


def _store(name: str, recipes: Path) -> None:
    names = recipe_names(recipes)
    if name not in names:
        raise RecipeError(f"recipe={name!r}: {did_you_mean(name, names)}")
    path = recipes / f"{name}.yaml"
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path.name}: cannot be read as YAML ({_one_line(error)})") from None
    if not isinstance(node, DictConfig):
        raise RecipeError(f"{path.name}: expected keys and values, as in the other recipes")
    _refuse_resolvers(node)
    known = _keys(OmegaConf.structured(Recipe))
    free = tuple(f"{key}." for key in (*_OPEN, "distil.losses"))
    for key in _keys(node):
        if key not in known and not key.startswith(free) and key != "defaults":
            raise RecipeError(f"{path.name}: {key} is no key of a recipe; {_nearest(key, known)}")
    store = ConfigStore.instance()
    store.store(name="schema", node=Recipe)
    store.store(group="recipe", name=name, node=node, package="_global_")


def _refuse_resolvers(config: DictConfig) -> None:
    """Refuse ``${resolver:…}``: a recipe from a stranger reads no environment."""
    for key, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and re.search(r"\$\{[^}]*:", value):
            raise RecipeError(f"{key}={value}: resolvers are not allowed in recipes, expected a plain value")


def _keys(config: Any, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        found.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(config, key):
            node = config._get_node(key)
            if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
                found += _keys(node, f"{prefix}{key}.")
    return found


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping | ListConfig | list):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _nearest(key: str, known: Sequence[str]) -> str:
    parent = key.rpartition(".")[0]
    beside = [k for k in known if k.rpartition(".")[0] == parent and k != "name"]
    return did_you_mean(key, beside or [k for k in known if "." not in k and k != "name"])


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    reason = (error.msg or str(error)).strip().splitlines()[0]
    return f"{key}: {reason}" if key else reason


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
