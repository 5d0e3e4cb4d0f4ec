"""Rows of a table for training, validation and test; the choice depends on the data alone."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lighten.data.cells import names_of, rows_of
from lighten.data.columns import column_of
from lighten.data.split import whole_groups
from lighten.errors import UserError

_NAMES = {"val": "validation", "test": "test_share"}


@dataclass(frozen=True)
class Shares:
    """How much is held out: a share below 1, or a number of rows.

    Attributes:
        validation: of the rows that are not for test.
        test: of all rows; ``None`` where the test part is given.

    Raises:
        UserError: if one is not above 0, or no whole number from 1 on.
    """

    validation: float
    test: float | None

    def __post_init__(self) -> None:
        for name, value in (("validation", self.validation), ("test_share", self.test)):
            if value is not None and (not 0 < value < float("inf") or (value > 1 and value != int(value))):
                raise UserError(f"{name}={value!r}, expected a share below 1 or a number of rows")


def split_rows(
    classes: Tensor, shares: Shares, where: str, *, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the rows of ``train``, ``val`` and, with a share of it, ``test``, ascending, int64.

    At least one row (or group) is held out for each; a class gives its share of rows. Without groups the choice hangs
    on the row's place, with groups on their names.

    Args:
        classes: int64 (N,); all 0 where there are none.
        shares: how much is held out.
        where: the rows are from, for messages.
        groups: uint64 (N,); rows of one group stay together.

    Raises:
        UserError: if fewer than two rows, or no group, would be left for training.
    """
    keys = np.arange(len(classes), dtype=np.uint64) if groups is None else groups
    labels = classes if groups is None else torch.zeros_like(classes)
    rest, rows = np.arange(len(classes)), {}
    for part, share in (("test", shares.test), ("val", shares.validation)):
        if share is None:
            continue
        units = len(np.unique(keys[rest]))
        count = max(1, round(units * (share if share < 1 else min(1, share / max(1, len(rest))))))
        if units - count < (2 if groups is None else 1):
            what = "rows" if groups is None else "groups"
            raise UserError(
                f"{where}: {_NAMES[part]} takes {count} of {units} {what}, and too few are left for training; "
                "hold out fewer, or add rows"
            )
        kept, held_out = whole_groups(keys[rest], labels[torch.from_numpy(rest)], count)
        rest, rows[part] = rest[kept], rest[held_out]
    return {"train": rest, **rows}


def group_keys(table: pa.Table, column: str | None, where: str) -> np.ndarray | None:
    """Return a hash of each row's group, uint64 (N,), or ``None`` without a column of groups.

    Raises:
        UserError: if the column is missing, has empty cells, or holds one group.
    """
    if column is None:
        return None
    names = names_of(column_of(table, column, "group_column", where), column, where)
    missing = names.is_null().to_numpy()
    if missing.any():
        raise UserError(f"{where}: no {column} in {rows_of(missing)}; remove or fix")
    coded = names.combine_chunks().dictionary_encode()
    if len(coded.dictionary) < 2:
        raise UserError(f"{where}: group_column={column!r} holds one group, expected several; leave it out")
    hashes = [hashlib.sha256(name.encode()).digest()[:8] for name in coded.dictionary.to_pylist()]
    return np.array([int.from_bytes(h, "big") for h in hashes], np.uint64)[coded.indices.to_numpy()]
