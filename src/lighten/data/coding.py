"""Numbers and categories of a table as inputs of a network; all that is learned comes from training rows alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lighten.data.cells import plain_name
from lighten.data.features import Cells
from lighten.errors import UserError


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: missing ones are ``median``; then it is standardised.

    Attributes:
        name: of the column.
        median: of the training rows that have one.
        mean: of the training rows, filled.
        std: likewise, of the population.
        indicator: whether one more input says with 1 that it was missing, as some were in training.
    """

    name: str
    median: float
    mean: float
    std: float
    indicator: bool


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: ``values`` are 1, 2, …; 0 is what is missing, or was not seen in training."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Coding:
    """How rows become inputs.

    Attributes:
        numbers: first in the tensor of numbers, in this order; their indicators come after them.
        categories: columns of the tensor of categories.
    """

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]

    @property
    def input_shape(self) -> dict[str, Any]:
        """How many numbers, and how many categories each column has, the one for missing included."""
        indicators = sum(column.indicator for column in self.numbers)
        sizes = [len(column.values) + 1 for column in self.categories]
        return {"numbers": len(self.numbers) + indicators, "categories": sizes}

    def settings(self) -> dict[str, Any]:
        """Return it in JSON types, from which :meth:`of` makes the same again."""
        categories = [{"name": column.name, "values": list(column.values)} for column in self.categories]
        return {"kind": "numbers", "numbers": [asdict(column) for column in self.numbers], "categories": categories}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Coding":
        """Return the coding of what :meth:`settings` returned.

        Raises:
            UserError: if it is anything else.
        """
        try:
            numbers = tuple(
                NumberColumn(
                    str(c["name"]), float(c["median"]), float(c["mean"]), float(c["std"]), bool(c["indicator"])
                )
                for c in settings["numbers"]
            )
            categories = tuple(
                CategoryColumn(str(c["name"]), tuple(plain_name(str(value)) for value in c["values"]))
                for c in settings["categories"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"preprocessing of numbers is damaged ({error!r}); write the model folder again") from None
        return cls(numbers, categories)


def learn(cells: Cells, where: str) -> tuple[Coding, list[str]]:
    """Return what training rows teach, and notes on the columns that are left out as they are all the same.

    Raises:
        UserError: if all are.
    """
    numbers, categories, constant = [], [], []
    for name, values in cells.numbers.items():
        missing = np.isnan(values)
        median = float(np.median(values[~missing])) if not missing.all() else 0.0
        filled = np.where(missing, median, values)
        if (missing.any() and not missing.all()) or np.ptp(filled):
            std = deviation(filled) or 1.0
            numbers.append(NumberColumn(name, median, float(filled.mean()), std, bool(missing.any())))
        else:
            constant.append(name)
    for name, names in cells.categories.items():
        known = tuple(sorted(pc.unique(names.drop_null()).to_pylist()))
        if len(known) > 1 or (known and names.null_count):
            categories.append(CategoryColumn(name, known))
        else:
            constant.append(name)
    if not numbers and not categories:
        raise UserError(f"{where}: every feature is the same in all training rows ({', '.join(constant)}); name others")
    notes = [f"column {name!r} is left out: it is the same in all training rows" for name in constant]
    return Coding(tuple(numbers), tuple(categories)), notes


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of a population, float64 (N,), also where squares are beyond float64."""
    with np.errstate(over="ignore"):
        std = float(values.std())
    scale = float(np.abs(values).max())
    return std if np.isfinite(std) else scale * float((values / scale).std())


def encode(coding: Coding, cells: Cells) -> dict[str, Tensor]:
    """Return ``numbers``, float32 (N, numbers), and ``categories``, int64 (N, columns); what is empty is left out."""
    columns, indicators = [], []
    for number in coding.numbers:
        values = cells.numbers[number.name]
        missing = np.isnan(values)
        columns.append((np.where(missing, number.median, values) - number.mean) / number.std)
        indicators += [missing] if number.indicator else []
    codes = [_codes(cells.categories[column.name], column.values) for column in coding.categories]
    inputs = {}
    if columns:
        inputs["numbers"] = torch.from_numpy(np.stack([*columns, *indicators], 1).astype(np.float32))
    if codes:
        inputs["categories"] = torch.from_numpy(np.stack(codes, 1))
    return inputs


def _codes(names: pa.ChunkedArray, values: tuple[str, ...]) -> np.ndarray:
    found = pc.index_in(names, value_set=pa.array(values, pa.string()), skip_nulls=True)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64) + 1
