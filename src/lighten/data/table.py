"""Texts and numbers of one's own: CSV, Parquet and JSON-lines files, or any data set of the ``datasets`` library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighten.data.registry import register_data
from lighten.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from lighten.data.number_data import NumberData, Tables
    from lighten.data.tables import Splits
    from lighten.data.text import TextData
    from lighten.data.text_part import Part, Texts

TASKS = ("classification", "multilabel", "regression")
TEST_SHARE = 10
"""One row in so many is the test part where nothing else is given."""


@dataclass(frozen=True)
class Columns:
    """What a table's columns are for; ``labels`` is empty where none are needed."""

    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    classes: tuple[str, ...] | None
    task: str


@register_data("table")
def table(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    path: str,
    text: str | None = None,
    text_pair: str | None = None,
    features: Sequence[str] | None = None,
    categories: Sequence[str] = (),
    exclude: Sequence[str] = (),
    label: str = "label",
    label_columns: Sequence[str] = (),
    test_path: str | None = None,
    config: str | None = None,
    test_split: str | None = None,
    classes: Sequence[str] | None = None,
    task: str | None = None,
    unit: str = "",
    validation: float | None = None,
    test_share: float | None = None,
    group_column: str | None = None,
    tokenizer: str = "minilm",
    max_length: int = 128,
    bucket: bool = True,
    objective: str = "labels",
) -> "TextData | NumberData":
    """Build the data module of a table of texts, or of one of numbers and categories.

    It is a table of texts where ``text`` or ``text_pair`` is given, or ``objective: mlm``, or a column is called
    ``text``; else, and with ``features``, one of numbers.

    Without ``test_path``, and without a split ``test`` or ``validation``, one row in ten becomes the test part: of
    texts by a hash of what they say, of numbers by a hash of the row's place, or of its group.

    Args:
        batch_size: samples of one process.
        seed: of order and masks.
        workers: processes that fetch batches ahead.
        path: a file ending in .csv, .tsv, .parquet, .json or .jsonl, else a folder or name for ``datasets``.
        text: column of texts; without it, ``text``.
        text_pair: column of second texts.
        features: columns of numbers and categories; without it all but the labels, the groups and those that only name
            the rows.
        categories: features that are categories though they look like numbers.
        exclude: columns that are no features, where ``features`` is not given.
        label: column of labels: names, or numbers from 0; for ``regression`` any numbers.
        label_columns: columns of 0 and 1 for ``multilabel``, one a class; for ``regression`` several targets.
        test_path: file of the test part, with the same columns.
        config: of a data set of ``datasets``.
        test_split: of a data set of ``datasets``, where ``test`` is not meant or hides its labels.
        classes: names of the classes in the order of their numbers; else they come from the training labels.
        task: ``classification``, ``multilabel`` or ``regression``; of texts ``classification`` without it, of numbers
            what the label columns look like.
        unit: of the numbers to estimate, such as ``USD``.
        validation: samples held out of the training part, 500 texts without it; of numbers also a share, one row in
            ten without it.
        test_share: of rows of numbers, or how many; one in ten without it.
        group_column: rows of numbers with the same value stay together, in one of training, validation and test.
        tokenizer: ``minilm``, a folder, or a name on the hub.
        max_length: tokens of a sample, special ones included.
        bucket: batches of similar length in training, which pads less.
        objective: ``labels``, or ``mlm`` to hide tokens and ask for them, which needs no label column.

    Raises:
        UserError: if ``task`` is unknown, or an option is missing or has no effect.
    """
    from lighten.data.tables import column_names, is_file_name

    several, is_file = tuple(label_columns), is_file_name(path)
    _check_task(task, several, classes)
    for key, value, right in (
        ("test_path", test_path, is_file),
        ("config", config, not is_file),
        ("test_split", test_split, not is_file),
    ):
        if value is not None and not right:
            kind = "a file" if is_file else "a data set of `datasets`"
            raise UserError(f"data table: {key}={value!r} has no effect, as path={path!r} is {kind}; leave it out")
    of_numbers = {
        "features": features, "categories": categories, "exclude": exclude, "group_column": group_column,
        "unit": unit, "test_share": test_share,
    }  # fmt: skip
    texts = text is not None or text_pair is not None or objective != "labels"
    if not texts and features is None:
        found = column_names(path) if is_file else []
        texts = "text" in found or not (found or any(of_numbers.values()))
    if test_share is not None and test_path is not None:
        raise UserError(f"data table: test_share={test_share!r} has no effect with test_path; leave one out")
    names = tuple(str(name) for name in classes) if classes is not None else None
    if not texts:
        from lighten.data.features import Choice
        from lighten.data.number_data import NumberData
        from lighten.data.row_split import Shares

        inputs = tuple(features) if features is not None else None
        return NumberData(
            lambda: read_numbers(path, test_path, config, test_split, label if not several else None),
            Choice(several or (label,), inputs, tuple(categories), tuple(exclude), group_column),
            shares=Shares(*(1 / TEST_SHARE if share is None else share for share in (validation, test_share))),
            task=task, classes=names, unit=unit,
            licence=f"not stated; see where {path} is from",
            batch_size=batch_size, seed=seed, workers=workers,
        )  # fmt: skip
    for key, option in of_numbers.items():
        if option:
            raise UserError(
                f"data table: {key}={option!r} has no effect on a table of texts; leave it out, or give features "
                "and no text for a table of numbers"
            )
    from lighten.data.text import TextData

    task = task or "classification"
    if several and task == "classification":
        raise UserError(
            f"data table: label_columns={label_columns!r} with task={task}; it is a list for multilabel or regression"
        )
    labels = () if objective == "mlm" else several or (label,)
    columns = Columns(text or "text", text_pair, labels, names, task)

    def read() -> "Texts":
        return read_files(columns, path, test_path) if is_file else read_splits(columns, path, config, test_split)

    return TextData(
        read,
        task=task,
        class_names=names if task == "classification" else labels,
        licence=f"not stated; see where {path} is from",
        validation=500 if validation is None else validation,  # type: ignore[arg-type]  # it checks that itself
        batch_size=batch_size, seed=seed, workers=workers,
        tokenizer=tokenizer, max_length=max_length, bucket=bucket, objective=objective,
    )  # fmt: skip


def _check_task(task: str | None, several: tuple[str, ...], classes: Sequence[str] | None) -> None:
    if task is not None and task not in TASKS:
        raise UserError(f"data table: task={task!r}; {did_you_mean(str(task), TASKS)}")
    if task == "classification" and several:
        raise UserError(
            f"data table: label_columns={list(several)!r} with task={task}; it is a list for multilabel or regression"
        )
    if task == "multilabel" and len(several) < 2:
        raise UserError("data table: task=multilabel needs label_columns, a list of two or more columns of 0 and 1")
    if classes is not None and (task not in (None, "classification") or len(set(classes)) < 2):
        raise UserError(f"data table: classes={classes!r} with task={task}; it is a list of names for classification")


def read_files(columns: Columns, path: str, test_path: str | None) -> "Texts":
    """Return the texts of a training file and, where given, of a test file.

    Raises:
        UserError: if a file or a column is missing, or a label is wrong.
    """
    from lighten.data.tables import read_file

    named = [column for column in (columns.text, columns.text_pair) if column is not None]
    train = read_file(path, named)
    test = read_file(test_path, named) if test_path is not None else None
    return to_texts(columns, (path, train), (test_path, test) if test_path is not None else None)


def read_splits(columns: Columns, path: str, config: str | None, test_split: str | None) -> "Texts":
    """Return the texts of a data set of ``datasets``: ``train``, and ``test_split``, ``test`` or ``validation``.

    Raises:
        UserError: if it cannot be had, a split or a column is missing, or a label is wrong.
    """
    splits, source, chosen = _splits(path, config, test_split)
    known = splits.class_names.get(columns.labels[0]) if columns.labels else None
    return to_texts(
        columns,
        (f"{source}, train", splits.tables["train"]),
        (f"{source}, {chosen}", splits.tables[chosen]) if chosen else None,
        known=known,
    )


def read_numbers(
    path: str, test_path: str | None, config: str | None, test_split: str | None, label: str | None
) -> "Tables":
    """Return the tables of files, or of a data set of ``datasets``, with the names of the classes that it knows.

    Raises:
        UserError: if it cannot be had, or a file or split is missing.
    """
    from lighten.data.number_data import Tables
    from lighten.data.tables import is_file_name, read_file

    if is_file_name(path):
        test = read_file(test_path, None) if test_path is not None else None
        return Tables(read_file(path, None), path, test, test_path or "")
    splits, source, chosen = _splits(path, config, test_split)
    names = splits.class_names.get(label) if label is not None else None
    test = splits.tables[chosen] if chosen else None
    return Tables(splits.tables["train"], f"{source}, train", test, f"{source}, {chosen}", names)


def to_texts(
    columns: Columns,
    train: tuple[str, "pa.Table"],
    test: tuple[str, "pa.Table"] | None,
    *,
    known: tuple[str, ...] | None = None,
) -> "Texts":
    """Return the texts of tables.

    Args:
        columns: what to read.
        train: where it is from, and the table.
        test: likewise; without it, rows of ``train`` are taken.
        known: names of the classes, where the table knows them.

    Raises:
        UserError: if a column is missing, a label is wrong, or too few rows are there to take test rows from.
    """
    from lighten.data.columns import class_names_of, column_of
    from lighten.data.text_part import Texts

    names = columns.labels
    if columns.task == "classification" and columns.labels:
        given = columns.classes or known
        names = given or class_names_of(column_of(train[1], columns.labels[0], "label", train[0]), train[0])
    part = _part(columns, names, *train)
    if test is not None:
        return Texts(part, _part(columns, names, *test), names)
    return Texts(*_split(part, columns, train[0]), names)


def _splits(path: str, config: str | None, test_split: str | None) -> tuple["Splits", str, str | None]:
    """Return a data set, how messages call it, and the name of its test split, if there is one."""
    from lighten.data.tables import read_hub

    splits = read_hub(path, config)
    source = path if config is None else f"{path}, {config}"
    present = [name for name in ("test", "validation") if name in splits.tables]
    chosen = test_split or next(iter(present), None)
    for name in ("train", *([chosen] if chosen else [])):
        if name not in splits.tables:
            raise UserError(f"data set {source!r} has no split {name!r}; {did_you_mean(name, splits.tables)}")
    return splits, source, chosen


def _part(columns: Columns, names: Sequence[str], where: str, rows: "pa.Table") -> "Part":
    from lighten.data.columns import texts_of
    from lighten.data.text_part import Part

    pair = columns.text_pair
    return Part(
        texts_of(rows, columns.text, "text", where),
        _labels(columns, names, where, rows),
        texts_of(rows, pair, "text_pair", where) if pair is not None else None,
    )


def _labels(columns: Columns, names: Sequence[str], where: str, rows: "pa.Table") -> "Tensor":
    import torch

    from lighten.data.columns import classes_of, column_of, targets_of

    if not columns.labels:
        return torch.zeros(rows.num_rows, dtype=torch.int64)
    if columns.task == "classification":
        return classes_of(column_of(rows, columns.labels[0], "label", where), names, where)
    option = "label" if len(columns.labels) == 1 else "label_columns"
    found = [(name, column_of(rows, name, option, where)) for name in columns.labels]
    return targets_of(found, where, zero_or_one=columns.task == "multilabel")


def _split(part: "Part", columns: Columns, where: str) -> tuple["Part", "Part"]:
    from lighten.data.text_part import hold_out

    if len(part.texts) < TEST_SHARE:
        raise UserError(f"{where} has {len(part.texts)} rows, too few to take a test part from; give test_path")
    by_class = columns.task == "classification" and bool(columns.labels)
    rest, held_out = hold_out(part, len(part.texts) // TEST_SHARE, by_class=by_class)
    return part.select(rest), part.select(held_out)
