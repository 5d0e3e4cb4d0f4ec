"""Run folders: finding them, reading and writing what lies in them."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighten.errors import UserError
from lighten.utils.files import replace_file

if TYPE_CHECKING:
    from lighten.pruning.plan import Plan

RUN_MARKS = ("recipe.yaml", "history.jsonl", "checkpoints", "student", "student.onnx", "scores.json")
"""A folder that holds one of these is a run folder."""

FLOAT_FILE = "student_float32.onnx"
"""The quantized student in float32: what the int8 file is timed against."""


def open_run(run: str | Path) -> Path:
    """Return ``run`` as a path after checking that it is a run folder.

    Raises:
        UserError: if there is no such folder, or nothing in it that a run leaves behind.
    """
    path = Path(run)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; expected a run folder, runs/<recipe>/<id>")
    if not any((path / mark).exists() for mark in RUN_MARKS):
        raise UserError(
            f"{path}: not a run folder, none of {', '.join(RUN_MARKS)} is in it; expected runs/<recipe>/<id>"
        )
    return path


def recipe_name(run: Path) -> str:
    """Return the recipe's name: the folder that holds the run, ``runs/<recipe>/<id>``."""
    return run.resolve().parent.name


def read_json(path: Path, *, made_by: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        made_by: the command that writes it, named to the user when it is missing or broken.

    Raises:
        UserError: if the file is missing or holds no JSON object.
    """
    if not os.path.isdir(path.parent):
        raise UserError(f"{path.parent}: no such folder, expected one with {path.name}; check the path")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; make it with `{made_by}`")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); make it again with `{made_by}`") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}, expected an object; make it again with `{made_by}`")
    return value


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` so that ``path`` is at every moment the old file or the whole new one."""
    replace_file(path, lambda file: file.write(text.encode()))
    return path


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity raise ``ValueError``."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_plan(value: Mapping[str, Any] | None) -> "Plan | None":
    """Return the plan that a JSON object holds; ``None`` where there is no object.

    Raises:
        UserError: if it is no plan, or of another schema.
    """
    if not value:
        return None
    from lighten.pruning.plan import Plan

    return Plan.from_json(json.dumps(value))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class HistoryRows:
    """The readable lines of ``history.jsonl``, and what was wrong with the others.

    Attributes:
        rows: one mapping a line, in order of steps.
        notes: sentences for the reader about lines that were left out.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return ``(progress, value)`` wherever ``key`` was logged as a finite number."""
        return self.every_series.get(key, [])

    @cached_property
    def every_series(self) -> dict[str, list[tuple[float, float]]]:
        """The series of each key that was ever logged as a finite number."""
        found: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            if _is_number(row.get("progress")):
                at = float(row["progress"])
                for key, value in row.items():
                    if _is_number(value):
                        found.setdefault(key, []).append((at, float(value)))
        return found


def read_history(path: Path) -> HistoryRows:
    """Read ``history.jsonl`` as far as it goes; no file is an empty history.

    A last line cut short (the run was killed while writing) and lines that are no objects are left out with a
    note. Where the steps go back, the run was resumed from a checkpoint: the later lines replace the earlier
        ones.
    """
    if not path.exists():
        return HistoryRows(notes=["There is no history.jsonl in this run."])
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    bad: list[int] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            bad.append(number)
            continue
        if rows and row["step"] < rows[-1]["step"]:
            rows = [earlier for earlier in rows if earlier["step"] < row["step"]]
        rows.append(row)
    return HistoryRows(_with_progress(rows), _notes(bad, len(lines)))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and _is_number(row.get("step")) else None


def _with_progress(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = max((row["step"] for row in rows), default=0) or 1
    return [row if _is_number(row.get("progress")) else {**row, "progress": row["step"] / last} for row in rows]


def _notes(bad: list[int], lines: int) -> list[str]:
    notes = []
    if bad and bad[-1] == lines:
        notes.append("The last line of history.jsonl is cut short and was left out.")
        bad = bad[:-1]
    if bad:
        notes.append(f"{len(bad)} unreadable line(s) of history.jsonl were left out, the first is line {bad[0]}.")
    return notes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
