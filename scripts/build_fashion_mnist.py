"""Build the embedded subset of Fashion-MNIST from the original idx files.

    python scripts/build_fashion_mnist.py                 # writes src/lighten/data/fashion_mnist.parquet
    python scripts/build_fashion_mnist.py --check         # compares that file with what would be built

Debian's package `dataset-fashion-mnist` holds the idx files. Of each class the first 1,200 training and 200 test
images in the order of a fixed hash are taken. After a rebuild the printed SHA-256 goes into
lighten/data/fashion_mnist.py; PNG and Parquet bytes can differ between versions of Pillow and pyarrow, images cannot.
"""

import sys

import torch
from _embed import main

from lighten.data.fashion_mnist import EMBEDDED, read_idx_folder
from lighten.data.images import Images
from lighten.data.parquet import decode, encode
from lighten.data.split import stratified

TRAIN, TEST = 12_000, 2_000


def build(folder: str) -> Images:
    """Return the stratified subset."""
    images = read_idx_folder(folder)
    _, train = stratified(images.train_labels, TRAIN)
    _, test = stratified(images.test_labels, TEST)
    return Images(images.train[train], images.train_labels[train], images.test[test], images.test_labels[test])


def same(content: bytes, subset: Images) -> bool:
    """Return whether a file has exactly these images."""
    found = decode(content)
    return all(torch.equal(getattr(found, part), getattr(subset, part)) for part in vars(subset))


if __name__ == "__main__":
    folder = "/usr/share/datasets/fashion-mnist"
    sys.exit(main(__doc__, EMBEDDED, folder=folder, what="images", build=build, encode=encode, same=same))
