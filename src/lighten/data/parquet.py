"""Images as PNG in one Parquet file, as embedded in the package: columns ``split``, ``label``, ``image``."""

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from lighten.data.embedded import to_parquet
from lighten.data.images import Images

_SCHEMA = pa.schema({"split": pa.string(), "label": pa.uint8(), "image": pa.binary()})


def encode(images: Images) -> bytes:
    """Return the file's content; the same images give the same bytes with the same library versions."""
    rows = [
        *_rows("train", images.train, images.train_labels),
        *_rows("test", images.test, images.test_labels),
    ]
    return to_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA))


def decode(content: bytes) -> Images:
    """Return the images of a file that :func:`encode` wrote."""
    table = pq.read_table(io.BytesIO(content), schema=_SCHEMA)
    train = np.array(table["split"].to_pylist()) == "train"
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    pixels = _stack(table["image"].to_pylist())
    return Images(pixels[train], labels[train], pixels[~train], labels[~train])


def _rows(split: str, pixels: Tensor, labels: Tensor) -> Iterable[dict[str, object]]:
    for image, label in zip(pixels, labels.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()).save(
            file, "PNG", optimize=True
        )
        yield {"split": split, "label": label, "image": file.getvalue()}


def _stack(files: list[bytes]) -> Tensor:
    arrays = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    return to_pixels(arrays)


def to_pixels(arrays: list[np.ndarray]) -> Tensor:
    """Return grey (H, W) or colour (H, W, C) arrays of bytes as one uint8 tensor (N, C, H, W)."""
    pixels = torch.from_numpy(np.stack(arrays))
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
