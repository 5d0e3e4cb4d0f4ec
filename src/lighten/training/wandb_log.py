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
    logs = Path(folder).glob(f"wandb/*run-*/run-{run_id}.wandb")
    return [row for path in sorted(logs, key=lambda path: _opened_at(path)) for row in read_rows(path)]


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


def _opened_at(path: Path) -> str:
    return path.parent.name.partition("run-")[2]
