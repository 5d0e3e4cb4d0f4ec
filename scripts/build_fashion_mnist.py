"""Build the embedded subset of Fashion-MNIST from the original idx files.

    python scripts/build_fashion_mnist.py                 # writes src/lighten/data/fashion_mnist.parquet
    python scripts/build_fashion_mnist.py --check         # compares that file with what would be built

Debian's package `dataset-fashion-mnist` holds the idx files. Of each class the first 1,200 training and 200 test
images in the order of a fixed hash are taken. After a rebuild the printed SHA-256 goes into
lighten/data/fashion_mnist.py; PNG and Parquet bytes can differ between versions of Pillow and pyarrow, images cannot.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch

from lighten.data.fashion_mnist import SHA256, embedded_file, read_idx_folder
from lighten.data.images import Images
from lighten.data.parquet import decode, encode
from lighten.data.split import stratified

TRAIN, TEST = 12_000, 2_000


def main() -> int:
    """Build or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="of the idx files, plain or .gz")
    parser.add_argument("--output", type=Path, default=Path(str(embedded_file())))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    options = parser.parse_args()
    subset = choose(read_idx_folder(options.folder))
    if options.check:
        return check(options.output.read_bytes(), subset)
    content = encode(subset)
    options.output.write_bytes(content)
    print(f"{options.output}: {len(content) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")
    return 0


def choose(images: Images) -> Images:
    """Return the stratified subset."""
    _, train = stratified(images.train_labels, TRAIN)
    _, test = stratified(images.test_labels, TEST)
    return Images(images.train[train], images.train_labels[train], images.test[test], images.test_labels[test])


def check(content: bytes, subset: Images) -> int:
    """Return 0 if the file has the released digest and exactly these images."""
    same_digest = hashlib.sha256(content).hexdigest() == SHA256
    found = decode(content)
    same_images = all(torch.equal(getattr(found, part), getattr(subset, part)) for part in vars(subset))
    print(f"digest {'agrees' if same_digest else 'DIFFERS'}, images {'agree' if same_images else 'DIFFER'}")
    return 0 if same_digest and same_images else 1


if __name__ == "__main__":
    sys.exit(main())
