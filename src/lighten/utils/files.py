"""Atomic files, and errors of disks in one line."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any

from lighten.errors import UserError

PREFIX, SUFFIX = ".writing-", ".tmp"

_TEMPORARY = re.compile(rf"{re.escape(PREFIX)}(.*?)-\d+{re.escape(SUFFIX)}")

ADVICE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "remove files or have the quota raised",
    errno.EROFS: "mount its file system writable",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check its disk",
    errno.ESTALE: "mount its file system again",
}
"""What to do about what a disk says."""


class DiskError(UserError, OSError):
    """A file or folder cannot be written; the message is one line. ``errno`` and ``strerror`` are the system's.

    Args:
        path: what was being written.
        error: of the system.
        what: cannot be done, as ``be written``.
    """

    def __init__(self, path: Path, error: OSError, what: str = "be written") -> None:
        reason = error.strerror or str(error)
        advice = ADVICE.get(error.errno or 0, "check its folder")
        path = Path(_TEMPORARY.sub(r"\1", str(path)))
        self._line = f"{path} cannot {what} ({reason}); {advice} and rerun the same command; finished files are kept"
        super().__init__(self._line)
        self.errno, self.strerror, self.filename = error.errno, reason, str(path)

    def __str__(self) -> str:
        return self._line


@contextlib.contextmanager
def disk_errors_as_user_errors(path: Path, what: str = "be read or written") -> Iterator[None]:
    """Turn what a disk refuses while the block runs into a :class:`DiskError`, whichever library has met it.

    Args:
        path: named where the library does not say which file it was.
        what: cannot be done then.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        known = next((e for e in chain if isinstance(e, DiskError)), None)
        if known is not None:
            raise known from error
        found = next(filter(None, map(_refusal, chain)), None)
        if found is None:
            raise
        raise DiskError(Path(found.filename or path), found, what) from error


@contextlib.contextmanager
def name_target_in_errors(target: Path) -> Iterator[None]:
    """Let what a disk refuses in the block name ``target``: not the temporary file, and not no file at all.

    Raises:
        DiskError: if the disk refuses.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(target, error) from error
    except Exception as error:
        found = next(filter(None, map(_refusal, _chain(error))), None)
        if found is None:
            raise
        raise DiskError(target, found) from error


@contextlib.contextmanager
def suppress_thread_disk_errors() -> Iterator[None]:
    """Keep log files and dashboards' threads from telling, each with a traceback, what a disk refuses.

    The next thing that the fit itself writes is refused too, and says so in one line.
    """
    raising, hook = logging.raiseExceptions, threading.excepthook

    def tell(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_value is None or _refusal(thread.exc_value) is None:
            hook(thread)

    logging.raiseExceptions, threading.excepthook = False, tell
    try:
        yield
    finally:
        logging.raiseExceptions, threading.excepthook = raising, hook


def replace_file(target: Path, write: Callable[[BufferedRandom], Any]) -> tuple[str, int]:
    """Write ``target`` through a temporary file beside it, flushed to the disk before it is renamed.

    Args:
        target: its folder must exist.
        write: gets the open temporary file.

    Returns:
        SHA-256 (hex) and size in bytes of what was written.

    Raises:
        DiskError: if the disk refuses; an earlier ``target`` then stays.
    """
    temporary = _beside(target)
    try:
        with name_target_in_errors(target), temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        with name_target_in_errors(target):
            os.replace(temporary, target)
            sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return digest, size


def write_whole(target: Path, save: Callable[[Path], Any]) -> None:
    """Let ``save`` write a file or folder under another name beside ``target``, flush it, and rename it.

    Args:
        target: must not be there yet if it is a folder.
        save: gets the path to write to.

    Raises:
        DiskError: if the disk refuses; an earlier ``target`` then stays.
    """
    temporary = _beside(target)
    try:
        with name_target_in_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            save(temporary)
            for path in [temporary, *temporary.rglob("*")]:
                _sync(path)
            os.replace(temporary, target)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def replace_together(files: Mapping[Path, Path]) -> None:
    """Flush files and give them their names in order, without a moment at which old and new ones lie together.

    Args:
        files: from new files to their targets on the same disk. The last one is what a reader opens: its old file goes
            before any other is replaced.

    Raises:
        DiskError: if the disk refuses; where it has no room for the new files, the old ones stay.
    """
    *_, last = files.values()
    with name_target_in_errors(last):
        for new in files:
            _sync(new)
        last.unlink(missing_ok=True)
        for new, target in files.items():
            os.replace(new, target)
        sync_folder(last.parent)


def append_line(path: Path, text: str) -> None:
    """Append ``text`` and a line's end to a text file.

    Raises:
        DiskError: if the disk refuses; what is appended may then be cut short.
    """
    with name_target_in_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        _sync(folder)


def remove_stale(folder: Path, *, deep: bool = False, age: float = 0.0) -> None:
    """Remove temporary files that a killed process has left in ``folder``.

    Args:
        folder: need not be there.
        deep: and in all folders below.
        age: leave alone what is younger, in seconds: in a shared folder somebody may be writing it.
    """
    for path in list((folder.rglob if deep else folder.glob)(f"{PREFIX}*{SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):  # others tidy shared folders too
            if time.time() - path.stat().st_mtime >= age:
                _remove(path)


def _beside(target: Path) -> Path:
    return target.with_name(f"{PREFIX}{target.name}-{os.getpid()}{SUFFIX}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and what came before it: writers cover one error by another as they close."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _refusal(error: BaseException) -> OSError | None:
    """Return what the disk said; libraries written in Rust put it into words."""
    if isinstance(error, OSError):
        return error if error.errno in ADVICE else None
    words = re.search(r"\(os error (\d+)\)", str(error))
    number = int(words[1]) if words else 0
    return OSError(number, os.strerror(number)) if number in ADVICE else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
