"""Where recipes are: in a folder of one's own, and in the package."""

from pathlib import Path

from lighten.utils.shipped import shipped


def recipe_files(folder: Path) -> dict[str, Path]:
    """Return the file of each recipe, by name: those of ``folder``, and those that come with lighten.

    Args:
        folder: its recipes take precedence over shipped ones of the same name; it need not exist.
    """
    files = {path.stem: path for place in (shipped("recipes"), folder) for path in place.glob("*.yaml")}
    return dict(sorted(files.items()))
