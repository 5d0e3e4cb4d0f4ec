"""Storage of a search: ``search.json``, one folder a trial, and Optuna's journal; one process at a time."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.report.search_page import write_search_report
from lighten.errors import UserError, first_line
from lighten.search.journal import journal_at, lock_of
from lighten.utils.files import disk_errors_as_user_errors, remove_stale

STATE, LOOK, STUDY, LOCK, TRIALS, BEST = "search.json", "look.json", "study.log", "search.lock", "trials", "best"
SCHEMA = 1
MADE_BY = "lighten.compress"


class Storage:
    """The folder of a search, which this process alone writes while the block runs.

    Args:
        folder: made where missing.
        made_of: what decides the search, in JSON types; a folder that holds another one is refused.

    Attributes:
        state: the content of ``search.json``.

    Raises:
        UserError: if another process searches there, or the folder holds another search.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {"schema": SCHEMA, "made_of": dict(made_of)}
        self._lock: int | None = None
        self._study: Any = None

    def __enter__(self) -> "Storage":
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"folder={self.folder}: is a file, expected a folder or a new name")
        with disk_errors_as_user_errors(self.folder, "be made"):
            (self.folder / TRIALS).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / LOCK)
        try:
            remove_stale(self.folder, deep=True)
            if (self.folder / STATE).exists():
                self._resume()
            self._study = _open_study(self.folder / STUDY)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The rows of all trials so far."""
        return self.state.setdefault("trials", [])

    def trial_folder(self, number: int) -> Path:
        """Return where a trial's files are."""
        return self.folder / TRIALS / str(number)

    def write(self) -> None:
        """Write ``search.json``, whole or not at all, and its report, of which no mistake may end a search."""
        write_json(self.folder / STATE, self.state)
        try:
            write_search_report(self.folder)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            warnings.warn(f"{self.folder}: report.html is not written ({first_line(error)})", stacklevel=2)

    def ask(self, number: int, setting: Mapping[str, Any]) -> None:
        """Tell Optuna which setting trial ``number`` tries, unless it knows of it from before a stop."""
        if len(self._study.trials) <= number:
            self._study.enqueue_trial({}, user_attrs=dict(setting))
            self._study.ask()

    def report(self, number: int, value: float, step: int) -> None:
        """Keep what a running trial comes to at a step."""
        if step not in self.reported(number):
            self._trial(number).report(value, step)

    def reported(self, number: int) -> dict[int, float]:
        """Return what was reported of a trial, by step."""
        return dict(self._study.trials[number].intermediate_values)

    def tell(self, row: Mapping[str, Any]) -> None:
        """Tell Optuna how a trial has ended, unless it knows."""
        from optuna.trial import TrialState

        number = row["number"]
        if self._study.trials[number].state.is_finished():
            return
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for name, value in (row.get("measured") or {}).items():
            self._trial(number).set_user_attr(name, value)
        value = row["measured"]["drop"] if row["state"] == "complete" else None
        self._study.tell(number, value, state=states[row["state"]])

    def _trial(self, number: int) -> Any:
        from optuna.trial import Trial

        return Trial(self._study, self._study.trials[number]._trial_id)

    def _resume(self) -> None:
        found = read_json(self.folder / STATE, made_by=MADE_BY)
        if found.get("schema") != SCHEMA:
            raise UserError(
                f"{self.folder / STATE}: schema {found.get('schema')!r}, expected {SCHEMA}; give another folder"
            )
        there, here = found.get("made_of", {}), self.state["made_of"]
        differs = [key for key in here if there.get(key) != here[key]]
        if differs:
            said = ", ".join(f"{key} {_short(there.get(key))} and not {_short(here[key])}" for key in differs)
            raise UserError(
                f"{self.folder}: holds another search, with {said}; repeat that call to resume it, or give another "
                "folder"
            )
        self.state = found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


def _locked(path: Path) -> int:
    """Return an open lock that goes with this process, however it ends.

    Raises:
        UserError: if another process holds it.
    """
    with disk_errors_as_user_errors(path, "be written"):
        lock = lock_of(path, wait=False)
    if lock is None:
        holder = path.read_text(errors="replace").strip()
        raise UserError(
            f"{path.parent}: process {holder or '?'} searches in this folder now; wait for it, or give another folder"
        )
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _open_study(path: Path) -> Any:
    """Return the study of a journal."""
    import optuna

    storage = journal_at(path)
    return optuna.create_study(study_name="compress", storage=storage, direction="minimize", load_if_exists=True)
