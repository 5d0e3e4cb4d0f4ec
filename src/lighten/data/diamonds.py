"""Diamonds: 53,940 round-cut stones with weight, cut, colour, clarity, sizes, and the price in US dollars.

The table is that of ggplot2, as ``plotnine`` carries it. All of it is embedded; the test part, one row in ten, is
chosen by a hash of what a stone is, so that two stones that are alike are on one side.
"""

import io
from functools import cache
from typing import TYPE_CHECKING

from lighten.data.embedded import EmbeddedFile
from lighten.data.registry import register_data

if TYPE_CHECKING:
    from lighten.data.number_data import NumberData, Tables

EMBEDDED = EmbeddedFile(
    "diamonds.parquet",
    "1053984cccc39c988b79e8cc8f982606c54443f470fc8e4e528643fce0c979ea",
    script="build_diamonds.py",
)
FEATURES = ("carat", "cut", "color", "clarity", "depth", "table", "x", "y", "z")
PRICE = "price"
LICENCE = "diamonds: MIT, Copyright (c) 2022 Hassan Kibirige (plotnine), after ggplot2, https://plotnine.org"


@register_data("diamonds")
def diamonds(*, batch_size: int, seed: int, workers: int, validation: float = 0.1) -> "NumberData":
    """Build the data module of the diamonds: estimate the price from the features.

    Args:
        batch_size: samples of one process.
        seed: of the order.
        workers: processes that fetch batches ahead.
        validation: share of the training part that is held out, or how many rows.

    Raises:
        UserError: if ``validation`` is out of range.
    """
    from lighten.data.features import Choice
    from lighten.data.number_data import NumberData
    from lighten.data.row_split import Shares

    return NumberData(
        read_embedded, Choice((PRICE,), FEATURES), shares=Shares(validation, None), task="regression", unit="USD",
        licence=LICENCE, batch_size=batch_size, seed=seed, workers=workers,
    )  # fmt: skip


@cache
def read_embedded() -> "Tables":
    """Return the embedded table; decoded once in a process.

    Raises:
        UserError: if the file is missing or not the one that was released.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from lighten.data.number_data import Tables

    table = pq.read_table(io.BytesIO(EMBEDDED.read()))
    train, test = (table.filter(pc.equal(table["split"], part)) for part in ("train", "test"))
    return Tables(train, "diamonds, train", test, "diamonds, test")
