"""Build the embedded diamonds from plotnine's data.

    pip download plotnine --no-deps && unzip plotnine-*.whl 'plotnine/data/diamonds.csv'
    python scripts/build_diamonds.py --folder plotnine/data           # writes src/lighten/data/diamonds.parquet
    python scripts/build_diamonds.py --folder plotnine/data --check   # compares that file with what would be built

All rows are taken, in the order of a hash of each; one in ten, by a hash of its features, is for test. After a rebuild
the printed SHA-256 goes into lighten/data/diamonds.py; Parquet bytes can differ between versions of pyarrow, rows
cannot.
"""

import hashlib
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from _embed import main
from pyarrow import csv

from lighten.data.diamonds import EMBEDDED, FEATURES, PRICE
from lighten.data.embedded import to_parquet

ROWS = 53_940


def build(folder: str) -> pa.Table:
    """Return all rows, with the part that each belongs to."""
    table = csv.read_csv(Path(folder) / "diamonds.csv")
    assert table.num_rows == ROWS
    rows = table.select([*FEATURES, PRICE]).to_pylist()
    rows.sort(key=lambda row: _hash(row, [*FEATURES, PRICE]))
    test = [_hash(row, list(FEATURES))[-1] * 10 < 256 for row in rows]
    split = ["test" if held_out else "train" for held_out in test]
    return pa.Table.from_pylist([{"split": part, **row} for part, row in zip(split, rows, strict=True)])


def _hash(row: dict[str, object], names: list[str]) -> bytes:
    return hashlib.sha256("|".join(str(row[name]) for name in names).encode()).digest()


if __name__ == "__main__":
    sys.exit(
        main(
            __doc__, EMBEDDED, folder="plotnine/data", what="rows", build=build, encode=to_parquet,
            same=lambda content, table: pq.read_table(io.BytesIO(content)).equals(table),
        )
    )  # fmt: skip
