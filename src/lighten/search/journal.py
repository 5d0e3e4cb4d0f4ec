"""Optuna's journal in a folder that several processes share, of which any may be killed at any moment."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast


def journal_at(path: Path) -> Any:
    """Return Optuna's storage in a file, mended where a kill has cut its last line short."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.exists():
        lock = _Lock(path)
        lock.acquire()
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, _Lock(path))))


def lock_of(path: Path, *, wait: bool) -> int | None:
    """Return an open lock that goes with this process, however it ends; ``None`` where another one holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # Windows, where processes do not share a folder
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        return None
    return lock


class _Lock:
    """A lock that goes with its process: Optuna's own outlives one that is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None

    def acquire(self) -> bool:
        """Wait for the journal, and mend it."""
        self._held = lock_of(self._path.with_suffix(".journal.lock"), wait=True)
        _mend(self._path)
        return True

    def release(self) -> None:
        """Let others write."""
        if self._held is not None:
            os.close(self._held)
        self._held = None


def _mend(path: Path) -> None:
    """Cut a last line that was not written to its end; whoever calls it holds the journal's lock."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
