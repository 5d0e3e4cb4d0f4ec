"""Writing files so that a reader sees the old one or the new one, never half of one."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path
from typing import Any

PREFIX, SUFFIX = ".writing-", ".tmp"


def replace_file(target: Path, write: Callable[[BufferedRandom], Any]) -> tuple[str, int]:
    """Write ``target`` through a temporary file beside it, flushed to the disk before it is renamed.

    Args:
        target: its folder must exist.
        write: gets the open temporary file.

    Returns:
        SHA-256 (hex) and size in bytes of what was written.
    """
    temporary = target.with_name(f"{PREFIX}{target.name}-{os.getpid()}{SUFFIX}")
    try:
        with temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
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
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{PREFIX}{target.name}{SUFFIX}")
    _remove(temporary)
    try:
        save(temporary)
        for path in [temporary, *temporary.rglob("*")]:
            _sync(path)
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        _remove(temporary)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        _sync(folder)


def remove_stale(folder: Path) -> None:
    """Remove temporary files that a killed process has left in ``folder``."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        _remove(path)


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
