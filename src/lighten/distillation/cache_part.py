"""CachePart: the file of a teacher cache that one process writes and all read."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lighten.distillation.slots import Slots
from lighten.utils.files import write_whole

_HEADER = 64  # bytes before the first slot: a SHA-256 in hexadecimal digits


@dataclass(frozen=True)
class CachePart:
    """A sparse file: the digest of the cache's meta data, then a fixed slot for every key.

    Args:
        path: of the file.
        digest: of the meta data, 64 bytes.
        slots: how outputs become bytes.
        keys: how many there are.
    """

    path: Path
    digest: bytes
    slots: Slots
    keys: int

    @property
    def size(self) -> int:
        """Bytes of the file, holes included."""
        return _HEADER + self.keys * self.slots.fields.itemsize

    def create(self) -> None:
        """Write the file without any outputs, whole or not at all."""
        write_whole(self.path, self._write_empty)

    def fault(self) -> str:
        """Return what is wrong with the file, or nothing."""
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"has {size:,} bytes, expected {self.size:,}"
            with self.path.open("rb") as file:
                return "" if file.read(_HEADER) == self.digest else "belongs to another cache or is damaged"
        except FileNotFoundError:
            return "is gone"

    def rows(self) -> np.ndarray:
        """Return all slots (keys,), read from the disk as they are looked at."""
        return np.asarray(np.memmap(self.path, self.slots.fields, "r", _HEADER, (self.keys,)))

    def write(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Write the slots (batch,) of some keys."""
        width, data = rows.itemsize, memoryview(rows.tobytes())
        with self.path.open("r+b", buffering=0) as file:  # by calls, as a full disk kills who writes to a map
            for at, key in enumerate(keys.tolist()):
                os.pwrite(file.fileno(), data[at * width : (at + 1) * width], _HEADER + key * width)

    def flush(self) -> None:
        """Flush what was written to the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _write_empty(self, path: Path) -> None:
        path.write_bytes(self.digest)
        os.truncate(path, self.size)
