"""NumberReader: rows of a stranger as the inputs of a model that learned from a table of numbers."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lighten.data.cells import CATEGORY, NUMBER
from lighten.data.coding import Coding, encode
from lighten.data.features import read_cells
from lighten.errors import UserError, did_you_mean, shown
from lighten.utils.inputs import Call


class NumberReader:
    """Prepares rows as the data module does in evaluation.

    Args:
        settings: what ``NumberData.preprocessing()`` returned.

    Raises:
        UserError: if the settings are damaged.

    Example:
        >>> column = {"name": "age", "median": 40.0, "mean": 41.0, "std": 2.0, "indicator": False}
        >>> reader = NumberReader({"kind": "numbers", "numbers": [column], "categories": []})
        >>> reader.read([{"age": 43}, {"age": None}])[1]["numbers"].tolist()
        [[1.0], [-0.5]]
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.coding = Coding.of(settings)
        numbers, categories = self.coding.numbers, self.coding.categories
        self._kinds = {c.name: NUMBER for c in numbers} | {c.name: CATEGORY for c in categories}

    def read(self, sources: "Sequence[Any] | str | os.PathLike[str]") -> Call:
        """Return the call of a batch.

        Args:
            sources: rows, each a mapping from column to value, ``None`` where it is missing; or paths of CSV, TSV,
                Parquet or JSON-lines files, whose rows follow one another. Columns that the model does not read are
                passed over.

        Raises:
            UserError: if there is no row, a file or a column is missing, or a cell is wrong.
        """
        import torch

        given: list[Any] = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
        if not given:
            raise UserError("no rows to read, expected mappings from column to value, or paths of files")
        if all(isinstance(source, Mapping) for source in given):
            return (), self._inputs(self._table(given), "rows")
        wrong = next((source for source in given if not isinstance(source, str | os.PathLike)), None)
        if wrong is not None:
            raise UserError(
                f"a row is of type {type(wrong).__name__}, expected mappings from column to value, or paths of files"
            )
        batches = [self._file(os.fspath(path)) for path in given]
        return (), {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def _file(self, path: str) -> dict[str, Any]:
        from lighten.data.tables import read_file

        table = read_file(path, None)
        if not table.num_rows:
            raise UserError(f"{path} has no rows, expected some")
        return self._inputs(table, path)

    def _inputs(self, table: pa.Table, where: str) -> dict[str, Any]:
        cells = read_cells(table, self._kinds, where)
        for column in self.coding.categories:
            given = cells.categories[column.name].drop_null()
            if len(given) and not pc.any(pc.is_in(given, value_set=pa.array(column.values, pa.string()))).as_py():
                warnings.warn(
                    f"{where}: nothing in {column.name!r} occurred in training, where it was {_some(column.values)}; "
                    f"{shown(repr(given[0].as_py()))} counts as missing",
                    stacklevel=4,
                )
        return encode(self.coding, cells)

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = {}
        for name in self._kinds:
            lacking = next((i for i, row in enumerate(rows) if name not in row), None)
            if lacking is not None:
                hint = did_you_mean(name, map(str, rows[lacking]))
                raise UserError(f"row {lacking + 1} has no {name!r} (None where it is not known); {hint}")
            columns[name] = _array([row[name] for row in rows])
        return pa.table(columns)


def reader_of(settings: Mapping[str, Any]) -> NumberReader:
    """Return the reader that ``NumberData.preprocessing()`` describes."""
    return NumberReader(settings)


def _some(values: Sequence[str]) -> str:
    named = [shown(repr(value), 20) for value in values[:5]]
    return ", ".join(named) + (", …" if len(values) > len(named) else "")


def _array(values: Sequence[Any]) -> pa.Array:
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    try:
        return pa.array(plain)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types
        return pa.array([None if value is None else str(value) for value in plain], pa.string())
