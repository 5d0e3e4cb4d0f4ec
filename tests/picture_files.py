"""Small image files for tests of people's own images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import parquet

from lighten.data.fashion_mnist import EMBEDDED


def noise(height=12, width=16, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, array, **options):
    """Write an array as an image in the format of the path's suffix."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def class_folder(root, counts, *, first=0, **size):
    """Write images of noise, each another one from ``first`` on: ``counts`` is {name of the class: how many}."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write(root / name / f"{number}.png", noise(seed=first + 1000 * place + number, **size))
    return root


def clothes_folder(root, count=60):
    """Write embedded Fashion-MNIST images as a folder a class, as handwritten digits come."""
    rows = parquet.read_table(io.BytesIO(EMBEDDED.read()))[:count].to_pylist()
    for number, row in enumerate(rows):
        path = root / str(row["label"]) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    return root


def pair_folder(root, count=12, second="masks", values=(0, 1, 2, 255), height=32, width=32):
    """Write images and, with equal names, masks that hold all of ``values`` or target pictures."""
    for number in range(count):
        write(root / "images" / f"{number}.jpg", noise(height, width, seed=number))
        if second == "masks":
            rows = np.array(values, np.uint8)[np.arange(height) * len(values) // height]
            array = np.repeat(rows[:, None], width, 1)
        else:
            array = noise(height, width, seed=900 + number)
        write(root / second / f"{number}.png", array)
    return root


def truncate(path):
    """Cut a file in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
