"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): ten kinds of clothing, 28×28 grey pixels.

An embedded subset of 12,000 training and 2,000 test images needs no network; ``source`` gets all 60,000 + 10,000.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lighten.data.embedded import EmbeddedFile
from lighten.data.registry import register_data
from lighten.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from lighten.data.images import ImageData, Images

EMBEDDED = EmbeddedFile(
    "fashion_mnist.parquet",
    "2b07208a6e05a4ddefb7c1af29b4331f13aa9d51100320e11e519b6975b0487e",
    script="build_fashion_mnist.py",
)
SOURCES = ("embedded", "idx", "datasets")
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
MEAN = (0.2860,)
STD = (0.3530,)


@register_data("fashion_mnist")
def fashion_mnist(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    source: str = "embedded",
    folder: str | None = None,
    validation: int = 1000,
    augment: bool = True,
    views: int | None = None,
) -> "ImageData":
    """Build the data module of Fashion-MNIST.

    Args:
        batch_size: samples of one process.
        seed: of order and augmentation.
        workers: processes that fetch batches ahead.
        source: ``embedded`` subset, ``idx`` files in ``folder``, or ``datasets`` (the hub, or its cache).
        folder: of the four original files, plain or gzipped; Debian's ``dataset-fashion-mnist`` puts them in
            ``/usr/share/datasets/fashion-mnist``.
        validation: samples held out of the training part.
        augment: shift by up to two pixels and flip.
        views: different augmentations of an image, one an epoch in turn; ``None`` draws another one each epoch.

    Raises:
        UserError: if ``source`` is unknown, or ``folder`` is missing or has no effect.
    """
    from lighten.data.images import Facts, ImageData

    if source not in SOURCES:
        raise UserError(f"data fashion_mnist: source={source!r}; {did_you_mean(str(source), SOURCES)}")
    if (folder is not None) != (source == "idx"):
        raise UserError(f"data fashion_mnist: source={source!r} with folder={folder!r}; folder belongs to source: idx")
    readers: dict[str, Callable[[], Images]] = {
        "embedded": read_embedded,
        "idx": partial(read_idx_folder, str(folder)),
        "datasets": read_hub,
    }
    return ImageData(
        Facts(
            class_names=CLASSES,
            input_shape=(1, 28, 28),
            mean=MEAN,
            std=STD,
            licence="Fashion-MNIST: MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
            shift=2,
        ),
        readers[source],
        content=EMBEDDED.sha256 if source == "embedded" else None,
        batch_size=batch_size, seed=seed, workers=workers, validation=validation, augment=augment, views=views,
    )  # fmt: skip


@cache
def read_embedded() -> "Images":
    """Return the embedded subset; decoded once in a process.

    Raises:
        UserError: if the file is missing or not the one that was released.
    """
    from lighten.data.parquet import decode

    return decode(EMBEDDED.read())


def read_idx_folder(folder: str) -> "Images":
    """Return the full set from the original files.

    Raises:
        UserError: if a file is missing, cut short or of another format.
    """
    from lighten.data.idx import read_idx
    from lighten.data.images import Images

    def part(name: str, dimensions: int) -> "Tensor":
        return read_idx(Path(folder) / f"{name}-idx{dimensions}-ubyte", dimensions)

    train, train_labels = part("train-images", 3), part("train-labels", 1)
    test, test_labels = part("t10k-images", 3), part("t10k-labels", 1)
    return Images(train[:, None], train_labels.long(), test[:, None], test_labels.long())


def read_hub() -> "Images":
    """Return the full set through the ``datasets`` library, from the hub or its local cache.

    Raises:
        UserError: if it can be had from neither.
    """
    from lighten.data.hub import read_images

    return read_images("zalando-datasets/fashion_mnist", image="image", label="label")
