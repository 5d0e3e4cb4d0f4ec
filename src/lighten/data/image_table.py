"""A table of images: a column of paths, and columns of classes, labels or numbers."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lighten.data.cells import NUMBER, is_number, is_text, kind_of, names_of, numbers_of
from lighten.data.columns import classes_of, column_of, targets_of, texts_of
from lighten.data.find_images import Found, class_order
from lighten.data.tables import read_file
from lighten.errors import UserError, shown

_ADVICE = "set task: classification if these are names of classes"
MAX_FOUND_CLASSES = 20
"""Whole numbers with more values than this are taken for numbers, where nothing says that they are classes."""


def find_in_table(
    table: str, *, folder: str | None, image_column: str, label_column: str | None, label_columns: Sequence[str],
    group_column: str | None, classes: Sequence[str] | None, task: str | None,
) -> Found:  # fmt: skip
    """Return the images that a table names, and what they are for.

    Args:
        table: a CSV, TSV, Parquet or JSON-lines file.
        folder: that paths are relative to; ``None``: the table's own.
        image_column: of paths.
        label_column: of classes or numbers.
        label_columns: of 0 and 1, one a label, or of numbers; instead of ``label_column``.
        group_column: of groups that stay together in a split.
        classes: names of the classes in the order of their numbers.
        task: name; ``None``: found from the columns.

    Raises:
        UserError: if the file, a column or an image is missing, or a label is none.
    """
    rows = read_file(table, [image_column])
    if not rows.num_rows:
        raise UserError(f"{table} has no rows, expected one an image")
    names = _paths(rows, table, image_column)
    root = Path(folder).expanduser() if folder is not None else Path(table).parent
    files = tuple(os.path.join(root, name) for name in names)
    missing = [row for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        advice = "check the paths" if folder is not None else "give folder, which they are relative to"
        raise UserError(
            f"{table}: {len(missing)} of {len(files)} images are not there, the first is {shown(names[missing[0]])!r} "
            f"in row {missing[0] + 1}, looked for in {root}; {advice}"
        )
    option = "label_columns" if label_columns else "label_column"
    columns = [
        (name, _whole(column_of(rows, name, option, table))) for name in label_columns or (label_column or "label",)
    ]
    task, why = (task, "as asked for") if task is not None else _task_of(columns, table, several=bool(label_columns))
    if task == "classification":
        labels, class_names = _classes(columns[0][1], columns[0][0], classes, table)
    else:
        class_names = tuple(name for name, _ in columns)
        labels = targets_of(columns, table, zero_or_one=task == "multilabel").double().numpy()
    if task == "regression":
        _check_varied(labels, class_names, table)
    return Found(
        where=table, files=files, names=names, task=task, why=why, labels=labels, class_names=class_names,
        groups=_groups(rows, group_column, table) if group_column is not None else (),
    )  # fmt: skip


def _paths(rows: pa.Table, table: str, image_column: str) -> tuple[str, ...]:
    names = texts_of(rows, image_column, "image_column", table)
    empty = next((row for row, name in enumerate(names, 1) if not name.strip()), None)
    if empty is not None:
        raise UserError(f"{table}: row {empty} has no {image_column}, expected the path of an image; remove or fix it")
    return tuple(names)


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals that are whole numbers throughout as integers: many programs write 3.0 for the class 3."""
    if not pa.types.is_floating(column.type) or not len(column):
        return column
    values = np.array(column.drop_null().to_numpy())
    return column.cast(pa.int64()) if (np.abs(values) < 2**53).all() and (values == np.trunc(values)).all() else column


def _task_of(columns: Sequence[tuple[str, pa.ChunkedArray]], table: str, *, several: bool) -> tuple[str, str]:
    """Return the task that columns of labels are for, and why.

    Raises:
        UserError: if a column of numbers has cells that are none, or spells them as no program reads them.
    """
    name, column = columns[0]
    for other, texts in columns:
        if is_text(texts.type) and kind_of(texts, other, table, advice=_ADVICE) == NUMBER:
            numbers = [text for text in texts.to_pylist() if text and is_number(text)]
            if not all(float(text).is_integer() for text in numbers):
                numbers_of(texts, other, table, advice=_ADVICE)
    if several:
        values = {value for _, column in columns for value in pc.unique(column).to_pylist()}
        return ("multilabel", "all of 0 and 1") if values <= {0, 1} else ("regression", "columns of numbers")
    count = pc.count_distinct(column).as_py()
    if pa.types.is_integer(column.type):
        few = count <= min(MAX_FOUND_CLASSES, len(column) / 2)
        return "classification" if few else "regression", f"{name} has {count} different whole numbers"
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return "regression", f"{name} has numbers"
    return "classification", f"{name} has names"


def _classes(
    column: pa.ChunkedArray, name: str, classes: Sequence[str] | None, table: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and the names of their classes; what is written like a name is one, numbers too."""
    if not pa.types.is_floating(column.type):
        column = pc.cast(column, pa.string())
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, pa.string()), column)
    if column.null_count:
        row = column.is_null().index(True).as_py() + 1
        raise UserError(f"{table}: {column.null_count} rows have no {name}, the first is row {row}; remove or fix them")
    if pa.types.is_floating(column.type):
        raise UserError(f"{table}: {name!r} is a column of {column.type}, expected classes; set task: regression")
    names = class_order(pc.unique(column).to_pylist(), classes, table)
    return classes_of(column, names, table).numpy(), names


def _check_varied(labels: np.ndarray, names: Sequence[str], table: str) -> None:
    same = np.flatnonzero(labels.min(0) == labels.max(0))
    if len(same):
        raise UserError(
            f"{table}: {names[same[0]]!r} is {labels[0, same[0]]:g} in every row, which nothing can be learned from; "
            "choose another column"
        )


def _groups(rows: pa.Table, name: str, table: str) -> tuple[str, ...]:
    column = names_of(column_of(rows, name, "group_column", table), name, table)
    if column.null_count:
        row = column.is_null().index(True).as_py() + 1
        raise UserError(f"{table}: {column.null_count} rows have no {name}, the first is row {row}; remove or fix them")
    return tuple(map(str, column.to_pylist()))
