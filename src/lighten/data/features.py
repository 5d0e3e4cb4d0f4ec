"""Which columns of a table are inputs, and whether each is a number or a category."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lighten.data.cells import CATEGORY, NUMBER, is_number, kind_of, names_of, numbers_of
from lighten.data.columns import column_of
from lighten.errors import UserError

_ID = re.compile(
    r"(?i:(^|[_ .-])(id|ids|index|uuid|guid|key)$|^(unnamed: \d+|__index_level_\d+__|)$)|([a-z]I|^[A-Z]{1,3}I)[dD]$"
)
"""How columns are called that name the rows."""
_MANY = 20
"""Rows from which on a column of texts that are mostly different is taken for names of the rows."""


@dataclass(frozen=True)
class Choice:
    """What a user says of a table's columns.

    Attributes:
        targets: columns to predict.
        features: inputs; ``None`` takes all other columns but those that only name the rows.
        categories: inputs that are categories whatever they look like.
        exclude: columns that are no inputs, where ``features`` is ``None``.
        group: column that says which rows belong together.
    """

    targets: tuple[str, ...]
    features: tuple[str, ...] | None = None
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class Cells:
    """A table's inputs, cell by cell: float64 with NaN where missing, and names with null where missing."""

    numbers: dict[str, np.ndarray]
    categories: dict[str, pa.ChunkedArray]

    def take(self, rows: np.ndarray) -> "Cells":
        """Return these rows alone."""
        return Cells(
            {name: values[rows] for name, values in self.numbers.items()},
            {name: values.take(pa.array(rows)) for name, values in self.categories.items()},
        )


def choose_features(table: pa.Table, choice: Choice, where: str) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each input by name, in the table's order, and notes on the columns left out.

    Left out are columns that only name the rows: counters, texts of which most are different, and integers that are all
    different in a column called id or the like.

    Raises:
        UserError: if a column is unknown, named twice, a target, or holds neither numbers nor text, or none is left.
    """
    _check(table, choice, where)
    taken = {*choice.targets, *choice.exclude, choice.group}
    names = choice.features if choice.features is not None else [n for n in table.column_names if n not in taken]
    kinds, notes = {}, []
    if all(map(is_number, table.column_names)):
        notes.append("the names of the columns are numbers: if they are a row of data, put a line of names above it")
    for name in names:
        column = column_of(table, name, "features", where)
        kind = CATEGORY if name in choice.categories else kind_of(column, name, where)
        reason = None
        if not len(names_of(column, name, where).drop_null()):
            reason = "it is empty"
            if choice.features is not None:
                raise UserError(f"{where}: column {name!r} of features is empty; leave it out")
        elif choice.features is None and name not in choice.categories:
            reason = _names_rows(column, kind, name, where)
        if reason is None:
            kinds[name] = kind
        else:
            notes.append(f"column {name!r} is left out: {reason}")
    if not kinds:
        why = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"{where}: no column is left for features beside {', '.join(choice.targets)}{why or '; name some'}"
        )
    return kinds, notes


def read_cells(table: pa.Table, kinds: dict[str, str], where: str) -> Cells:
    """Return the inputs of a table.

    Raises:
        UserError: if a column is missing, or a cell of a number is text or not finite.
    """
    columns = {name: column_of(table, name, "features", where) for name in kinds}
    return Cells(
        {name: numbers_of(column, name, where) for name, column in columns.items() if kinds[name] == NUMBER},
        {name: names_of(column, name, where) for name, column in columns.items() if kinds[name] == CATEGORY},
    )


def _check(table: pa.Table, choice: Choice, where: str) -> None:
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where} has more than one column {twice!r}; rename or remove one")
    given: dict[str, Sequence[str]] = {
        "label_columns" if len(choice.targets) > 1 else "label": choice.targets,
        "features": choice.features or (),
        "categories": choice.categories,
        "exclude": choice.exclude,
        "group_column": (choice.group,) if choice.group is not None else (),
    }
    for option, columns in given.items():
        for name in columns:
            column_of(table, name, option, where)
            if list(columns).count(name) > 1:
                raise UserError(f"{where}: {option} names {name!r} twice; name it once")
    if choice.features is not None and choice.exclude:
        raise UserError(f"{where}: exclude has no effect where features says which columns are inputs; leave it out")
    for option in ("features", "categories"):
        for name in given[option]:
            if name in choice.targets:
                raise UserError(f"{where}: {option} has {name!r}, which is to be predicted; leave it out")
            if name == choice.group:
                raise UserError(f"{where}: {option} has {name!r}, which is group_column; leave it out")
            if option == "categories" and (name in choice.exclude or name not in (choice.features or (name,))):
                raise UserError(f"{where}: categories has {name!r}, which is no feature; leave it out")


def _names_rows(column: pa.ChunkedArray, kind: str, name: str, where: str) -> str | None:
    """Return why a column says nothing but which row it is, or ``None``."""
    if kind == CATEGORY:
        names = names_of(column, name, where).drop_null()
        different = len(pc.unique(names))
        if different > 1 and (2 * different > len(names) if len(names) >= _MANY else different == len(names)):
            return f"{different} different texts in {len(names)} rows"
        return None
    values = numbers_of(column, name, where)
    if len(values) < 2 or not np.array_equal(values, np.round(values)):  # NaN is no integer
        return None
    if (np.diff(values) == 1).all() and values[0] in (0, 1):
        return "it counts the rows"
    return "it names the rows" if _ID.search(name) and len(np.unique(values)) == len(values) else None
