"""What stands at the repository's root and travels inside the wheel: recipes, job scripts, a starting project."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return the place of a file or folder that comes with lighten.

    A wheel holds it in the package, where ``setup.py`` puts it; a checkout, at its root.

    Args:
        name: ``recipes``, ``slurm`` or ``start``.
    """
    inside = _PACKAGE / "shipped"
    return (inside if inside.is_dir() else _PACKAGE.parents[1]) / name
