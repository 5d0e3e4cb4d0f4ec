"""Build the embedded subset of WordNet's glosses from its data files.

    python scripts/build_wordnet_glosses.py                 # writes src/lighten/data/wordnet_glosses.parquet
    python scripts/build_wordnet_glosses.py --check         # compares that file with what would be built

Debian's package `wordnet-base` holds the data files. Every definition counts once; a hash of its text says whether it
belongs to the training or the test part, and which are taken: of each class 20 and 3 (the smallest has 42 in all), then
its share of what is left of 16,000 and 2,000. After a rebuild the printed SHA-256 goes into
lighten/data/wordnet_glosses.py; Parquet bytes can differ between versions of pyarrow, rows cannot.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch

from lighten.data.split import stratified
from lighten.data.wordnet import is_test, read_glosses
from lighten.data.wordnet_glosses import SHA256, Row, decode, embedded_file, encode

TRAIN, TEST = 16_000, 2_000
LEAST_TRAIN, LEAST_TEST = 20, 3


def main() -> int:
    """Build or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="/usr/share/wordnet", help="of data.noun and its siblings")
    parser.add_argument("--output", type=Path, default=Path(str(embedded_file())))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    options = parser.parse_args()
    rows = read_glosses(options.folder)
    train = choose([row for row in rows if not is_test(row[0])], TRAIN, LEAST_TRAIN)
    test = choose([row for row in rows if is_test(row[0])], TEST, LEAST_TEST)
    if options.check:
        return check(options.output.read_bytes(), train, test)
    content = encode(train, test)
    options.output.write_bytes(content)
    print(f"{options.output}: {len(content) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")
    return 0


def choose(rows: list[Row], count: int, least: int) -> list[Row]:
    """Return ``count`` rows in their order: the first ``least`` of each class, and its share of the others."""
    labels = torch.tensor([label for _, label in rows])
    first = torch.cat([torch.nonzero(labels == label).flatten()[:least] for label in labels.unique()])
    others = torch.ones(len(rows), dtype=torch.bool)
    others[first] = False
    _, share = stratified(labels[others], count - len(first))
    chosen = torch.cat([first, torch.nonzero(others).flatten()[share]]).sort().values
    return [rows[i] for i in chosen.tolist()]


def check(content: bytes, train: list[Row], test: list[Row]) -> int:
    """Return 0 if the file has the released digest and exactly these rows."""
    same_digest = hashlib.sha256(content).hexdigest() == SHA256
    same_rows = decode(content) == (train, test)
    print(f"digest {'agrees' if same_digest else 'DIFFERS'}, rows {'agree' if same_rows else 'DIFFER'}")
    return 0 if same_digest and same_rows else 1


if __name__ == "__main__":
    sys.exit(main())
