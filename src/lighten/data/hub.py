"""Image data sets through the ``datasets`` library: from the hub, or offline from its cache."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.data.checks import first_line
from lighten.data.images import Images
from lighten.data.parquet import to_pixels
from lighten.errors import UserError


def read_images(path: str, *, image: str, label: str) -> Images:
    """Return the ``train`` and ``test`` splits of a data set on the hub.

    Args:
        path: as ``datasets.load_dataset`` takes it; no code of the repository is run.
        image: column of images.
        label: column of integers.

    Raises:
        UserError: if the data set is neither on a reachable hub nor in the cache, or has other columns.
    """
    from datasets import load_dataset

    try:
        splits = load_dataset(path)
        train, train_labels = _columns(splits["train"], image, label)
        test, test_labels = _columns(splits["test"], image, label)
    except Exception as error:
        raise UserError(
            f"data set {path!r} cannot be had from the hub or from the cache of `datasets` ({first_line(error)}); "
            "fetch it once with a network, or choose another source"
        ) from error
    return Images(train, train_labels, test, test_labels)


def _columns(split: Any, image: str, label: str) -> tuple[Tensor, Tensor]:
    pixels = to_pixels([np.asarray(picture) for picture in split[image]])
    return pixels, torch.tensor(list(split[label]), dtype=torch.int64)
