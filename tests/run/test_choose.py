"""What a recipe's ``auto`` becomes."""

from types import SimpleNamespace

import pytest

from lighten.recipe.compose import compose_all
from lighten.run.choose import chosen, describe_choice
from lighten.tasks import build_task


@pytest.fixture
def recipe(request):
    from pathlib import Path

    words = ["recipe=own_images", "data_options.folder=photos", *getattr(request, "param", [])]
    (found,) = compose_all(words, Path(__file__).parents[2] / "recipes")
    return found


def data(task, shape, outputs=3):
    return SimpleNamespace(task=task, input_shape=shape, num_classes=outputs)


@pytest.mark.parametrize(
    ("task", "shape", "role", "expected"),
    [
        ("classification", (1, 28, 28), "student", ("resnet20", {"width": 16, "blocks": 1, "stem_stride": 1})),
        ("classification", (3, 224, 224), "teacher", ("resnet20", {"width": 32, "blocks": 2, "stem_stride": 2})),
        (build_task("regression"), (3, 96, 96), "student", ("resnet20", {"width": 16, "blocks": 1, "stem_stride": 2})),
        ("segmentation", (3, 64, 48), "teacher", ("unet", {"width": 24, "depth": 2, "residual": False})),
        ("image", (1, 512, 512), "student", ("unet", {"width": 8, "depth": 4, "residual": True})),
        ("detection", (3, 64, 64), "student", ("fcos", {"widths": [16, 32, 64], "blocks": 1, "neck": 32})),
        ("keypoints", (1, 64, 64), "student", ("unet", {"width": 8, "depth": 3, "residual": False})),
        ("regression", {"numbers": 3, "categories": [4]}, "student", ("table_mlp", {"hidden": [128, 64]})),
    ],
)
def test_the_network_follows_from_what_goes_in_and_what_is_answered(recipe, task, shape, role, expected):
    assert chosen(recipe, data(task, shape), role) == expected


@pytest.mark.parametrize("recipe", [["student=resnet20", "student_options={width: 4}"]], indirect=True)
def test_what_the_recipe_says_is_kept_and_the_rest_is_told(recipe):
    found = data("classification", (3, 32, 32))
    assert chosen(recipe, found, "student") == ("resnet20", {"width": 4})
    assert describe_choice(recipe, found) == (
        "found: task classification, 3 classes, inputs 3×32×32; chosen: teacher resnet20 (width 32, blocks 2, "
        "stem_stride 1)"
    )


@pytest.mark.parametrize("recipe", [["student=transformers", "student_options={path: minilm}"]], indirect=True)
def test_a_model_of_several_heads_gets_the_tasks(recipe):
    found = data("token_classification", (32,))
    assert chosen(recipe, found, "student") == ("transformers", {"path": "minilm", "head": "token_classification"})
