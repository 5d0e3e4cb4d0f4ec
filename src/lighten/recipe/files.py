"""Recipes as YAML files."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighten.errors import RecipeError, one_line
from lighten.recipe.checks import check
from lighten.recipe.schema import Recipe
from lighten.utils.safe_yaml import read_plain


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe), resolve=True)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe that ``to_yaml`` wrote.

    Raises:
        RecipeError: if there is none, or it does not fit the schema.
    """
    tree = read_plain(path)
    try:
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), tree))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: cannot be read as a recipe ({one_line(error, 200)})") from None
    assert isinstance(recipe, Recipe)
    return check(recipe)
