"""The status of a run without scores: how far it has come, and what it failed with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lighten.delivery.folders.model import CONFIG
from lighten.delivery.folders.student import FIT
from lighten.errors import shown
from lighten.training.failure import FILE

FILES_OF = (
    ("while the student was cut", f"student/{CONFIG}"),
    ("while its files were exported", "student.onnx"),
    ("while its files were measured", "scores.json"),
)
"""What a run does after its fit, and the file that each step ends with."""


def status(run: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return a heading and a sentence on a run that has no scores: where it failed, or where it stands.

    A process that was killed leaves no reason; where it was is reported all the same.

    Args:
        run: the run folder.
        rows: of its history.
    """
    where, error = _where(run, rows), _error(run)
    if error:
        return f"Failed {where}.", f"What stopped it: {error}"
    return "Not measured yet.", f"Nothing says that it failed; it was last seen {where}."


def failure_notes(run: Path, measured: bool) -> list[str]:
    """Return a note on a failure that came after the scores; nothing where there is none."""
    error = _error(run) if measured else None
    return [f"The last start of this run failed: {error}"] if error else []


def _error(run: Path) -> str | None:
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
        return shown(str(found["error"]), 1000)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _where(run: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "at the beginning of the fit" if (run / FIT).exists() else "before the student’s fit"
    last = rows[-1]
    share = float(last["progress"])
    if share < 1 and not (run / FILES_OF[0][1]).exists():
        of = f" of {last['step'] / share:.0f}" if share > 0 else ""
        return f"in the fit, after step {last['step']}{of}"
    return next((where for where, file in FILES_OF if not (run / file).exists()), "after everything was measured")
