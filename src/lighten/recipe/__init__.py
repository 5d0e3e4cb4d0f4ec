"""Recipes: YAML and command-line words in, one checked :class:`~lighten.recipe.schema.Recipe` out."""
