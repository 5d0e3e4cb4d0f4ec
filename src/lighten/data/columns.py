"""Columns of Arrow tables as texts and labels; errors name the row, counted from 1."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lighten.errors import UserError, did_you_mean

_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


def column_of(table: pa.Table, name: str, what: str, where: str) -> pa.ChunkedArray:
    """Return a column.

    Args:
        table: to look in.
        name: of the column.
        what: it is for, which is also the option's name: ``text``, ``label`` …
        where: the table is from, for messages.

    Raises:
        UserError: if there is none of that name; the message lists those that there are.
    """
    names = table.column_names
    if names.count(name) != 1:
        many = "more than one" if name in names else "no"
        raise UserError(f"{where}: {what}={name!r}, but it has {many} such column; {did_you_mean(name, names)}")
    column = table[name]
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def texts_of(table: pa.Table, name: str, what: str, where: str) -> list[str]:
    """Return a column of strings; nothing becomes the empty text.

    Raises:
        UserError: if it is missing or holds something else.
    """
    column = column_of(table, name, what, where)
    if pa.types.is_null(column.type):
        return [""] * len(column)
    if not _is_text(column.type):
        raise UserError(f"{where}: {what}={name!r} is a column of {column.type}, expected text; choose another column")
    return ["" if text is None else text for text in column.to_pylist()]


def class_names_of(column: pa.ChunkedArray, where: str) -> tuple[str, ...]:
    """Return the names of the classes of training labels: sorted names, or the numbers from 0 to the largest.

    Raises:
        UserError: if labels are neither names nor numbers from 0 that all occur, or all the same.
    """
    values = pc.unique(column).drop_null().to_pylist()
    if _is_text(column.type):
        names = tuple(sorted(values))
    elif pa.types.is_boolean(column.type):
        names = ("false", "true")
    elif pa.types.is_integer(column.type):
        missing = next((i for i in range(len(values)) if i not in set(values)), None)
        if missing is not None:
            raise UserError(
                f"{where}: labels are integers from {min(values)} to {max(values)} and none is {missing}, "
                "expected all from 0 on; renumber them, or list the names in classes"
            )
        names = tuple(str(i) for i in range(len(values)))
    else:
        raise UserError(f"{where}: labels are {column.type}, expected integers or names; choose another label column")
    if len(names) < 2:
        raise UserError(f"{where}: {len(names)} class in the labels, expected at least 2; choose another label column")
    return names


def classes_of(column: pa.ChunkedArray, names: Sequence[str], where: str) -> Tensor:
    """Return labels as int64 (N,), given as names or as numbers of names.

    Raises:
        UserError: if a row has none, or one that is unknown or out of range.
    """
    _check_full(column, "label", where)
    if _is_text(column.type):
        found = pc.index_in(column.cast(pa.string()), value_set=pa.array(list(names), pa.string()))
        unknown = _first(pc.is_null(found))
        if unknown is not None:
            label = column[unknown].as_py()
            raise UserError(f"{where}: label {label!r} in row {unknown + 1} is unknown; {did_you_mean(label, names)}")
    elif pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        found = column.cast(pa.int64())
        outside = _first(pc.or_(pc.less(found, 0), pc.greater_equal(found, len(names))))
        if outside is not None:
            raise UserError(
                f"{where}: label {found[outside].as_py()} in row {outside + 1} is out of range, expected "
                f"0 to {len(names) - 1}; fix it, or list all names in classes"
            )
    else:
        raise UserError(f"{where}: labels are {column.type}, expected integers or names; choose another label column")
    return torch.from_numpy(np.array(found.to_numpy(), np.int64))


def targets_of(columns: Sequence[tuple[str, pa.ChunkedArray]], where: str, *, zero_or_one: bool) -> Tensor:
    """Return numbers as float32 (N, columns).

    Raises:
        UserError: if one is missing, not a finite number, or with ``zero_or_one`` neither 0 nor 1.
    """
    stacked = []
    for name, column in columns:
        if not any(is_kind(column.type) for is_kind in _NUMBERS):
            raise UserError(f"{where}: column {name!r} is {column.type}, expected numbers; choose another label column")
        _check_full(column, name, where)
        values = np.array(column.cast(pa.float64()).to_numpy())
        with np.errstate(over="ignore"):
            fine = np.isin(values, (0, 1)) if zero_or_one else np.isfinite(values.astype(np.float32))
        if not fine.all():
            row = int(np.flatnonzero(~fine)[0])
            wanted = "0 or 1" if zero_or_one else "a finite number below 3.4e38"
            raise UserError(f"{where}: {name} is {values[row]:g} in row {row + 1}, expected {wanted}; fix it")
        stacked.append(values.astype(np.float32))
    return torch.from_numpy(np.stack(stacked, 1))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _check_full(column: pa.ChunkedArray, name: str, where: str) -> None:
    empty = _first(pc.is_null(column))
    if empty is not None:
        raise UserError(
            f"{where}: {column.null_count} rows have no {name}, the first is row {empty + 1}; remove or fix them"
        )


def _first(mask: pa.ChunkedArray) -> int | None:
    """Return the index of the first true entry."""
    index = pc.index(mask, True).as_py()
    return None if index < 0 else index
