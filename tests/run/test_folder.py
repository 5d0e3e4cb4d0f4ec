from pathlib import Path

import pytest

from lighten.errors import RecipeError
from lighten.recipe.compose import compose_all
from lighten.recipe.files import load_recipe
from lighten.recipe.schema import settings_of
from lighten.run.environment import FOLDER
from lighten.run.folder import keep_recipe, open_folder

RECIPES = Path(__file__).parents[2] / "recipes"


def test_each_of_several_runs_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    (recipe,) = compose_all(["recipe=smoke", f"runs={tmp_path}"], RECIPES)
    names = []
    for number in ("0", "1"):
        monkeypatch.setenv("LIGHTEN_JOB", number)
        names.append(open_folder(recipe).name)
    assert names == ["77", "77-1"]


def test_processes_started_together_need_a_name_for_their_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    (recipe,) = compose_all(["recipe=smoke", f"runs={tmp_path}"], RECIPES)
    with pytest.raises(RecipeError, match="give id=NAME"):
        open_folder(recipe)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def composed(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)

    def compose(*words):
        monkeypatch.delenv(FOLDER, raising=False)
        return compose_all(["recipe=smoke", "id=one", f"runs={tmp_path}", *words], RECIPES)[0]

    return compose


def test_what_changes_nothing_that_is_learned_may_differ(composed):
    folder = open_folder(composed())
    assert open_folder(composed("workers=2", "logger=none", "delivery.opset=20", "resume=changed")) == folder
    keys = settings_of(composed())
    assert {"optimizer.lr", "compress.prune.amount", "trainer.max_epochs", "student_options.width"} <= set(keys)
    assert not {"workers", "id", "runs", "name", "logger", "resume", "delivery.opset"} & set(keys)


def test_a_changed_recipe_stops_and_says_how_to_go_on(composed):
    folder = open_folder(composed())
    with pytest.raises(RecipeError) as caught:
        open_folder(composed("optimizer.lr=0.3", "trainer.max_epochs=9"))
    assert str(caught.value) == (
        f"optimizer.lr=0.3: {folder} holds a run with optimizer.lr=0.1, trainer.max_epochs=2; "
        "repeat its settings to resume it, set resume=changed to resume with these, or give another id"
    )
    assert load_recipe(folder / "recipe.yaml").optimizer.lr == 0.1


def test_told_to_go_on_it_warns_once_and_keeps_the_recipe_until_it_does(composed):
    folder = open_folder(composed())
    changed = composed("optimizer.lr=0.3", "resume=changed")
    with pytest.warns(UserWarning, match=r"is resumed with optimizer.lr=0.3; it began with optimizer.lr=0.1") as caught:
        assert open_folder(changed) == folder
    assert len(caught) == 1
    assert load_recipe(folder / "recipe.yaml").optimizer.lr == 0.1, "written once it goes on"
    keep_recipe(changed, folder)
    assert open_folder(composed("optimizer.lr=0.3")) == folder


@pytest.mark.parametrize("setting", ["seed=1", "student_options.width=16", "teacher=mlp", "optimizer.name=adamw"])
def test_what_a_checkpoint_holds_may_not_change_in_any_case(composed, setting):
    folder = open_folder(composed())
    key = setting.partition("=")[0]
    words = [setting, "teacher_options.widths=null"] if key == "teacher" else [setting]
    with pytest.raises(RecipeError, match=rf"^{key}=.* holds a run with {key}=.*to resume it, or give another id"):
        open_folder(composed(*words, "trainer.max_epochs=9", "resume=changed"))
    assert load_recipe(folder / "recipe.yaml").seed == 0
