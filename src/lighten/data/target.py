"""What is to be predicted of a table: a class, several labels, or numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lighten.data.cells import CATEGORY, is_text, kind_of, names_of, numbers_of, plain_name, rows_of
from lighten.data.columns import classes_of, column_of
from lighten.errors import UserError

CLASSIFICATION, MULTILABEL, REGRESSION = "classification", "multilabel", "regression"
_ADVICE = "name task=classification if these are classes"
MOST_CLASSES = 10
"""Different integers that are taken for classes, where no task is named; more are numbers to estimate."""


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        columns: one, or several for ``multilabel`` and ``regression``.
        task: its name.
        names: of the classes, the labels or the numbers.
        numbered: whether the column has the numbers of the classes, from 0.
    """

    columns: tuple[str, ...]
    task: str
    names: tuple[str, ...]
    numbered: bool = False


def find_target(
    table: pa.Table, columns: tuple[str, ...], task: str | None, classes: Sequence[str] | None, where: str
) -> tuple[Target, list[str]]:
    """Return what training rows say is to be predicted, and a note where the task was found from them.

    Args:
        table: of training.
        columns: to predict.
        task: its name; ``None``: text, truth values and up to ten different integers are classes, several columns of
            0 and 1 are labels, all else are numbers.
        classes: their names in the order of their numbers.
        where: the table is from.

    Raises:
        UserError: if a column is missing, or there are not two classes.
    """
    option = "label" if len(columns) == 1 else "label_columns"
    found = [column_of(table, name, option, where) for name in columns]
    notes = []
    if task is None:
        task, why = _task_of(found, columns, where) if classes is None else (CLASSIFICATION, "")
        notes = [f"task={task}, as {' and '.join(columns)} {why}; name another task to change it"] if why else []
    if task != CLASSIFICATION:
        return Target(columns, task, columns), notes
    if len(columns) > 1:
        raise UserError(f"{where}: label_columns has {len(columns)} columns, expected one for task=classification")
    cells = names_of(found[0], columns[0], where)
    _check_present(cells.is_null().to_numpy(), columns[0], where)
    seen = pc.unique(cells).to_pylist()
    names = tuple(classes) if classes is not None else _classes(seen)
    if not set(seen) & set(names) and set(seen) & set(map(plain_name, names)):  # classes: [1.0, 2.0]
        names = tuple(map(plain_name, names))
    if len(names) < 2:
        raise UserError(f"{where}: {columns[0]} is {seen[0]!r} in all rows, expected at least 2 classes")
    return Target(columns, task, names, numbered=_are_whole(seen) and not set(seen) & set(names)), notes


def read_target(table: pa.Table, target: Target, where: str) -> Tensor:
    """Return labels: int64 (N,) for classes, else float64 (N, columns).

    Raises:
        UserError: if one is missing, unknown, or not a finite number; for ``multilabel`` if it is neither 0 nor 1.
    """
    option = "label" if len(target.columns) == 1 else "label_columns"
    columns = {name: column_of(table, name, option, where) for name in target.columns}
    if target.task == CLASSIFICATION:
        (name,) = target.columns
        names = names_of(columns[name], name, where)
        _check_present(names.is_null().to_numpy(), name, where)
        known = [str(number) for number in range(len(target.names))] if target.numbered else target.names
        return classes_of(names, known, where)
    stacked = []
    for name, column in columns.items():
        values = _values(column, name, where)
        _check_present(np.isnan(values), name, where)
        wrong = ~np.isin(values, (0, 1))
        if target.task == MULTILABEL and wrong.any():
            raise UserError(f"{where}: {name} is neither 0 nor 1 in {rows_of(wrong)}; fix it, or name another task")
        stacked.append(values)
    return torch.from_numpy(np.stack(stacked, 1))


def check_varies(labels: Tensor, target: Target, where: str) -> None:
    """Raise ``UserError`` if what is to be predicted is the same in all training rows; ``labels`` as read."""
    for name, values in zip(target.columns, labels.reshape(len(labels), -1).T, strict=True):
        if (values == values[0]).all():
            value = target.names[int(values[0])] if target.task == CLASSIFICATION else f"{float(values[0]):g}"
            raise UserError(f"{where}: {name} is {value} in all {len(labels)} training rows, nothing to learn")


def _task_of(found: Sequence[pa.ChunkedArray], columns: Sequence[str], where: str) -> tuple[str, str]:
    if len(found) > 1:
        if all(_is_zero_or_one(column, name, where) for name, column in zip(columns, found, strict=True)):
            return MULTILABEL, "are all 0 or 1"
        return REGRESSION, "are numbers"
    (column,) = found
    different = len(pc.unique(names_of(column, columns[0], where).drop_null()))
    if _truth(column, columns[0], where) is not None:
        return CLASSIFICATION, "is true or false"
    if is_text(column.type) and kind_of(column, columns[0], where, advice=_ADVICE) == CATEGORY:
        return CLASSIFICATION, f"has {different} different texts"
    values = numbers_of(column, columns[0], where, advice=_ADVICE)
    whole = np.array_equal(values, np.round(values), equal_nan=True)
    if whole and different <= MOST_CLASSES and 2 * different <= len(values):
        return CLASSIFICATION, f"has {different} different whole numbers"
    return REGRESSION, f"has {different} different numbers"


def _is_zero_or_one(column: pa.ChunkedArray, name: str, where: str) -> bool:
    values = _values(column, name, where)
    return bool(np.isin(values[~np.isnan(values)], (0, 1)).all())


def _values(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    truth = _truth(column, name, where)
    return numbers_of(column, name, where, advice=_ADVICE) if truth is None else truth


def _truth(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray | None:
    """Return a column of true and false as 1 and 0, NaN where missing; ``None`` for any other."""
    names = names_of(column, name, where)
    known = pc.unique(names.drop_null()).to_pylist()
    if not known or not set(known) <= {"true", "false"}:
        return None
    return np.array(pc.equal(names, "true").cast(pa.float64()).to_numpy(), np.float64)


def _classes(names: list[str]) -> tuple[str, ...]:
    """Return the names of the classes, sorted; numbers by what they are."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _are_whole(names: Sequence[str]) -> bool:
    return all(name.lstrip("-").isdecimal() for name in names)


def _check_present(missing: np.ndarray, name: str, where: str) -> None:
    if missing.any():
        raise UserError(f"{where}: no {name} in {rows_of(missing)}; remove or fix")
