import dataclasses

import pytest

from lighten.errors import RecipeError
from lighten.recipe.files import load_recipe, to_yaml
from lighten.recipe.schema import Recipe


def test_yaml_round_trip(tmp_path):
    made = Recipe(name="mine", teacher="cnn")
    made.teacher_fit.max_epochs, made.distil.losses = 1, {"soft_labels": 0.5}
    made.trainer.devices, made.compress.prune.exclude = [0, 1], ["head"]
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(made))
    again = load_recipe(path)
    assert again == made
    assert {f.name: type(getattr(again, f.name)) for f in dataclasses.fields(Recipe)} == {
        f.name: type(getattr(made, f.name)) for f in dataclasses.fields(Recipe)
    }


@pytest.mark.parametrize("text", [None, "seed: [1", "seed: many", "sed: 1", "compress: {prune: {amount: 2.0}}"])
def test_an_unreadable_file_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
