"""The command line as ``train.py`` calls it."""

from collections.abc import Sequence
from pathlib import Path

from lighten.cli.main import main


def train_py(argv: Sequence[str], recipes: Path) -> int:
    """Do as ``train.py`` with the recipes of a folder."""
    return main(argv, recipes=recipes, default="train")
