"""What W&B has on disk of a run: the rows of its transaction logs, one ``.wandb`` file each time a run is opened.

The files are LevelDB logs: after a header of 7 bytes, blocks of 32 KiB that hold pieces of records, each piece with
its CRC-32, length and kind; a record is a protocol buffer.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 1 << 15
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of pieces."""


def rows(folder: str | Path, run_id: str) -> list[dict[str, Any]]:
    """Return what was logged to a run, row by row, over all the times it was opened, the earliest first.

    Args:
        folder: holds ``wandb/``.
        run_id: W&B's id of the run.
    """
    return [row for path in logs(folder, run_id) for row in read_rows(path)]


def logs(folder: str | Path, run_id: str) -> list[Path]:
    """Return the logs of a run, one for each time it was opened, the earliest first."""
    found = Path(folder).glob(f"wandb/*run-*/run-{run_id}.wandb")
    return sorted(found, key=lambda path: path.parent.name.partition("run-")[2])


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one log as far as they are whole: metrics by name, and W&B's own ``_step`` and the like."""
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a log, up to where a kill has cut it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    at, body = HEADER, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no place for another piece in this block
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + 7])
        piece = content[at + 7 : at + 7 + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return
        body = piece if kind in (WHOLE, FIRST) else body + piece
        if kind in (WHOLE, LAST):
            yield Record.FromString(body)
        at += 7 + length


def is_whole(path: Path) -> bool:
    """Return whether a log goes up to the end of its run: a disk that is full loses what follows, and W&B is silent."""
    return any(record.WhichOneof("record_type") == "exit" for record in read_records(path))
