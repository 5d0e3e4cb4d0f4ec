"""Data, teachers, student and module of a recipe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lighten
from lighten.recipe.compose import compose_all
from lighten.run import build
from lighten.run.pipeline import run
from lighten.utils.modules import modes_kept

RECIPES = Path(__file__).parents[2] / "recipes"


def composed(*overrides):
    (recipe,) = compose_all(["recipe=smoke", *overrides], RECIPES)
    return recipe


@pytest.fixture(scope="module")
def data():
    return build.data_of(composed(), workers=0)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_models_weights_are_those_of_the_recipes_seed_whatever_was_drawn_before(data):
    first, other = composed("seed=1"), composed("seed=2")
    one = build.build(first, data, first.student, first.student_options)
    torch.rand(7)
    state = torch.random.get_rng_state()
    again = build.build(first, data, first.student, first.student_options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(build.build(other, data, other.student, other.student_options)))
    assert one.training


def test_a_model_folder_says_what_its_model_was_made_of(data):
    recipe = composed()
    config = build.config_of(recipe, data, "f" * 64)
    assert config["made_of"]["teacher"] == "f" * 64
    assert config["made_of"]["data"] == config["data"]["fingerprint"] == data.fingerprint
    changed = build.config_of(replace(recipe, seed=recipe.seed + 1), data, "f" * 64)
    assert changed["made_of"]["recipe"] != config["made_of"]["recipe"]
    assert build.config_of(replace(recipe, workers=3), data)["made_of"]["recipe"] == config["made_of"]["recipe"]


def test_the_module_learns_from_labels_alone_without_a_teacher(data):
    recipe = composed()
    student = build.untrained_student(recipe, data)
    alone = build.module_of(recipe, data, student, [])
    assert alone.teacher is None
    taught = build.module_of(recipe, data, student, [build.untrained_teacher(recipe, data)])
    assert taught.teacher is not None
    with modes_kept(student):
        x = torch.rand(4, *data.input_shape)
        torch.testing.assert_close(alone.student.eval()(x), taught.student.eval()(x))
    assert student.training


def test_a_student_may_start_from_a_model_folder(tmp_path):
    start = lighten.build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[8, 8])
    made = run(composed(f"runs={tmp_path}", "id=one", f"student_checkpoint={lighten.save(start, tmp_path / 'start')}"))
    config = json.loads((made / "student" / "config.json").read_text())
    assert config["model"]["name"] == "cnn"
    assert json.loads((made / "scores.json").read_text())["comparison"]["flips_of"] == 2000
