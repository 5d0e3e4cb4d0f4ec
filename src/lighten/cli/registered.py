"""Check that a run's data set and model are registered in this process."""

import json
from pathlib import Path
from typing import Any

from lighten.errors import UserError, did_you_mean, shown


def check_registered(run: Path, step: str) -> None:
    """Refuse a run on data, or of a model, that nobody has registered here, and say how it can be used.

    Args:
        run: a run folder; one that cannot be read is left to the step.
        step: of the command line, such as ``measure``.

    Raises:
        UserError: if a name is not known.
    """
    from lighten.data import data_names
    from lighten.models import model_names

    config = _config(run)
    for kind, names in (("data", data_names()), ("model", model_names())):
        entry = config.get(kind)
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name not in names:
            group = {"data": "lighten.data", "model": "lighten.models"}[kind]
            raise UserError(
                f"{kind} {shown(repr(name))} is not known here; if your own train.py registers it, run "
                f"`python train.py {step} {run}`, else install the package that announces it as {group}; "
                f"{did_you_mean(name, names)}"
            )


def _config(run: Path) -> dict[str, Any]:
    """Return what describes the student; nothing where that cannot be read."""
    for name, key in (("student/config.json", None), ("fit.json", "config")):
        try:
            found = json.loads((run / name).read_text(encoding="utf-8"))
            found = found if key is None else found[key]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}
