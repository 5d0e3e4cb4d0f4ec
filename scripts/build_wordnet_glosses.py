"""Build the embedded subset of WordNet's glosses from its data files.

    python scripts/build_wordnet_glosses.py                 # writes src/lighten/data/wordnet_glosses.parquet
    python scripts/build_wordnet_glosses.py --check         # compares that file with what would be built

Debian's package `wordnet-base` holds the data files. Every definition counts once; a hash of its text says whether it
belongs to the training or the test part, and which are taken: of each class 20 and 3 (the smallest has 42 in all), then
its share of what is left of 16,000 and 2,000. After a rebuild the printed SHA-256 goes into
lighten/data/wordnet_glosses.py; Parquet bytes can differ between versions of pyarrow, rows cannot.
"""

import sys

import torch
from _embed import main

from lighten.data.split import stratified
from lighten.data.wordnet import is_test, read_glosses
from lighten.data.wordnet_glosses import EMBEDDED, Row, decode, encode

TRAIN, TEST = 16_000, 2_000
LEAST_TRAIN, LEAST_TEST = 20, 3


def build(folder: str) -> tuple[list[Row], list[Row]]:
    """Return the rows of the training and of the test part."""
    rows = read_glosses(folder)
    train = choose([row for row in rows if not is_test(row[0])], TRAIN, LEAST_TRAIN)
    return train, choose([row for row in rows if is_test(row[0])], TEST, LEAST_TEST)


def choose(rows: list[Row], count: int, least: int) -> list[Row]:
    """Return ``count`` rows in their order: the first ``least`` of each class, and its share of the others."""
    labels = torch.tensor([label for _, label in rows])
    first = torch.cat([torch.nonzero(labels == label).flatten()[:least] for label in labels.unique()])
    others = torch.ones(len(rows), dtype=torch.bool)
    others[first] = False
    _, share = stratified(labels[others], count - len(first))
    chosen = torch.cat([first, torch.nonzero(others).flatten()[share]]).sort().values
    return [rows[i] for i in chosen.tolist()]


if __name__ == "__main__":
    sys.exit(
        main(
            __doc__, EMBEDDED, folder="/usr/share/wordnet", what="rows", build=build,
            encode=lambda parts: encode(*parts), same=lambda content, parts: decode(content) == parts,
        )
    )  # fmt: skip
