from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lighten.recipe.compose import compose_all, read_recipe, recipe_names
from lighten.recipe.schema import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = recipe_names(RECIPES)


def leaves(tree, above=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def test_all_are_here():
    assert {
        "distil_bert",
        "distil_bert_pretrain",
        "distil_cnn",
        "distil_detector",
        "distil_image",
        "distil_mlp",
        "distil_segmentation",
        "distil_table",
        "own_images",
        "prune_bert",
        "prune_cnn",
        "prune_mlp",
        "quantize_bert",
        "quantize_cnn",
        "quantize_static",
        "smoke",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_composes_and_passes_the_check(name):
    (made,) = compose_all([f"recipe={name}"], RECIPES)
    assert made.name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_the_file_arrives(name):
    """The file is read again by another reader, and each value looked up in what was composed."""
    (made,) = compose_all([f"recipe={name}"], RECIPES)
    for key, value in leaves(yaml.safe_load((RECIPES / f"{name}.yaml").read_text())):
        at = made
        for part in key:
            at = at[part] if isinstance(at, dict) else getattr(at, part)
        assert at == value, key


@pytest.mark.parametrize("name", NAMES)
def test_comments_say_what_for_and_how(name):
    first, second, *_ = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert first.endswith(".")
    assert second.split(" data_options.")[0] == f"# python train.py recipe={name}"


@pytest.mark.parametrize("name", NAMES)
def test_only_flat_keys_of_the_schema(name):
    assert set(read_recipe(name, RECIPES)) <= set(OmegaConf.structured(Recipe))


def test_each_technique_alone_needs_no_teacher():
    prune, quantize = (compose_all([f"recipe={name}"], RECIPES)[0] for name in ("prune_cnn", "quantize_cnn"))
    for made in (prune, quantize):
        assert made.teacher is None
    assert (prune.compress.prune.amount is None, prune.compress.quantize.begin is None) == (False, True)
    assert (quantize.compress.prune.amount is None, quantize.compress.quantize.begin is None) == (True, False)
