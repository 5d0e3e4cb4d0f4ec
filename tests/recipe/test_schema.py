"""Every setting of the techniques: recipes, their files, the command line and Python have one default and one check."""

import inspect
import re
from dataclasses import fields
from typing import get_type_hints

import pytest
import yaml
from torch import nn

from lighten import (
    DistillationModule,
    Prune,
    Quantize,
    TeacherCache,
    find_float_layers,
    plan_pruning,
    quantize_,
    quantize_post_training,
)
from lighten.cli.main import parser
from lighten.delivery.folders.student import quantize_folder
from lighten.distillation.settings import DistilSettings
from lighten.errors import RecipeError, UserError
from lighten.pruning.narrow import shrink_feed_forward
from lighten.pruning.settings import PruneSettings, Settings
from lighten.quantization.observe import RULES
from lighten.quantization.settings import RANGES, QuantizeSettings
from lighten.recipe.compose import compose_all
from lighten.recipe.schema import Optimizer, Recipe
from lighten.training.optimizer import OptimizerSettings

NODES = {
    "compress.prune": PruneSettings,
    "compress.quantize": QuantizeSettings,
    "distil": DistilSettings,
    "optimizer": Optimizer,
}
DOORS = {
    "compress.prune": (Prune, plan_pruning, Settings, shrink_feed_forward),
    "compress.quantize": (Quantize, quantize_, quantize_post_training, find_float_layers, quantize_folder),
    "distil": (DistillationModule, TeacherCache),
    "optimizer": (OptimizerSettings, DistillationModule),
}
CALLED = {"cache_dtype": "dtype", "cache_top_k": "top_k"}
"""What Python calls a setting otherwise."""
OTHERWISE = {
    "compress.prune.amount": [],  # Python is asked to prune
    "compress.quantize.begin": [0.7],  # a callback is there to begin
    "compress.quantize.mode": ["static"],  # another function trains
    "compress.quantize.ranges": ["moving_average", "mse"],  # what auto stands for
    "compress.quantize.max_drop": [],
    "distil.cache": [None],  # of Python's own, with a folder
    "optimizer.name": ["adamw"],  # recipes train from scratch, Python's default fine-tunes
    "optimizer.lr": [1e-3],
    "optimizer.weight_decay": [0.01],
}
"""Defaults of Python that are not the recipe's."""
OF_RECIPES_ALONE = {"distil.preflight"}

SWITCHES = {"live", "soft", "cache", "compile_teacher", "preflight", "nesterov"}
NAMES_OF_LAYERS = {"exclude"}
"""What they are depends on the model."""


def linear():
    return nn.Linear(4, 3)


def distilled(**settings):
    return DistillationModule(linear(), linear(), **settings)


WRONG = {
    "compress.prune.amount": (1.0, Prune, Settings),
    "compress.prune.score": ("fpgn", lambda **s: Prune(0.5, **s), lambda **s: Settings(0.5, **s)),
    "compress.prune.scope": ("unform", lambda **s: Prune(0.5, **s), lambda **s: Settings(0.5, **s)),
    "compress.prune.begin": (-0.5, lambda **s: Prune(0.5, **s)),
    "compress.prune.end": (1.5, lambda **s: Prune(0.5, **s)),
    "compress.prune.schedule": ("qubic", lambda **s: Prune(0.5, **s)),
    "compress.prune.target": ("mac", lambda **s: Prune(0.5, **s), lambda **s: Settings(0.5, **s)),
    "compress.prune.align": (0, lambda **s: Prune(0.5, **s), lambda **s: Settings(0.5, **s)),
    "compress.prune.cuts": (0, lambda **s: Prune(0.5, **s)),
    "compress.prune.rate_norm": (0.0, lambda **s: Prune(0.5, **s), lambda **s: Settings(0.5, **s)),
    "compress.quantize.mode": ("statik", lambda **s: quantize_post_training(linear(), **s)),
    "compress.quantize.begin": (1.0, Quantize),
    "compress.quantize.freeze": (1.5, Quantize),
    "compress.quantize.ranges": ("minmax", Quantize, lambda **s: quantize_(linear(), **s)),
    "compress.quantize.weight_bits": (9, Quantize, lambda **s: quantize_(linear(), **s)),
    "compress.quantize.calibration": (0, lambda **s: quantize_folder("nowhere", "static", **s)),
    "compress.quantize.max_drop": (1.0, lambda **s: find_float_layers(linear(), [], **s)),
    "distil.temperature": (0.0, distilled),
    "distil.soft_weight": (1.5, distilled),
    "distil.losses": ({"hnit": 1.0}, distilled),
    "distil.loss_options": ({"dkd": {"betta": 1.0}}, lambda **s: distilled(losses={"dkd": 1.0}, **s)),
    "distil.layers": ("unifrm", distilled),
    "distil.cache_dtype": ("float15", lambda **s: TeacherCache("nowhere", **s)),
    "distil.cache_top_k": (0, lambda **s: TeacherCache("nowhere", **s)),
    "distil.teacher_precision": ("float15", distilled),
    "distil.teacher_weights": ([0.0], distilled),
    "optimizer.name": ("adam", OptimizerSettings),
    "optimizer.lr": (0.0, OptimizerSettings),
    "optimizer.weight_decay": (-1.0, OptimizerSettings),
    "optimizer.momentum": (1.0, OptimizerSettings),
    "optimizer.warmup": (1.0, OptimizerSettings),
    "optimizer.schedule": ("cosin", OptimizerSettings),
    "optimizer.label_smoothing": (1.0, distilled),
}
"""Of each setting a value that makes no sense, and what Python gives it to."""

KEYS = [f"{node}.{field.name}" for node, kind in NODES.items() for field in fields(kind)]


def as_word(value):
    """Return a value as the command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_word(item)}" for key, item in value.items()) + "}"
    return f"[{','.join(map(as_word, value))}]" if isinstance(value, list) else str(value)


@pytest.fixture
def recipes(tmp_path):
    def write(key=None, value=None):
        tree = {"student": "resnet20", "student_options": {"width": 4}, "compress": {"prune": {"amount": 0.5}}}
        node = tree
        *parts, last = key.split(".") if key else ["seed"]
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value if key else 0
        (tmp_path / "plain.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path

    return write


def test_each_setting_is_looked_at():
    plain = {key for key in KEYS if key.rpartition(".")[2] not in SWITCHES | NAMES_OF_LAYERS}
    assert plain == set(WRONG)
    kinds = {name: kind for node in NODES.values() for name, kind in get_type_hints(node).items()}
    assert {kinds[name] for name in SWITCHES} == {bool}


@pytest.mark.parametrize("key", KEYS)
def test_python_has_the_recipes_default(key):
    node, _, name = key.rpartition(".")
    settings = Recipe()
    for part in node.split("."):
        settings = getattr(settings, part)
    expected = getattr(settings, name)
    parameters = [inspect.signature(door).parameters.get(CALLED.get(name, name)) for door in DOORS[node]]
    parameters = [p for p in parameters if p is not None]
    assert bool(parameters) != (key in OF_RECIPES_ALONE)
    defaults = [p.default for p in parameters if p.default is not p.empty]
    if key in OTHERWISE:
        assert list(dict.fromkeys(defaults)) == OTHERWISE[key]
    else:  # nothing is an empty list in a recipe, and an empty tuple or None in a signature
        assert [default or type(expected)() if expected in ([], {}) else default for default in defaults] == [
            expected for _ in defaults
        ]


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_refused_everywhere_in_the_same_words(key, recipes):
    value, *doors = WRONG[key]
    name = key.rpartition(".")[2]
    said = []
    for words, folder in ([], recipes(key, value)), ([f"{key}={as_word(value)}"], None):
        with pytest.raises(RecipeError) as caught:
            compose_all(["recipe=plain", *words], folder or recipes())
        assert str(caught.value).startswith(key)
        said.append(str(caught.value).removeprefix(key))
    python = CALLED.get(name, name)
    for door in doors:
        with pytest.raises(UserError) as caught:
            door(**{python: value})
        said.append(re.split(rf"\b{python}(?=[=.])", str(caught.value), maxsplit=1)[1])
    more = {"compress.quantize.ranges": "auto, ", "compress.quantize.mode": ", train"}  # of recipes alone
    assert len({text.replace(more.get(key, "\n"), "") for text in said}) == 1, said
    assert re.search("expected|did you mean", said[0])


def test_each_rule_of_ranges_has_a_name():
    assert tuple(RULES) == RANGES


def test_the_command_line_calibrates_as_recipes_do():
    arguments = parser().parse_args(["quantize", "folder"])
    assert arguments.calibration == QuantizeSettings().calibration
    assert (arguments.mode, arguments.ranges) == ("static", QuantizeSettings(mode="static").resolved_ranges)
