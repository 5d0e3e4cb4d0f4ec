from pathlib import Path

import pytest

from lighten.launch import compose_all
from lighten.recipe import RecipeError
from lighten.run_folder import FOLDER, open_folder

RECIPES = Path(__file__).parent.parent / "recipes"


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
