"""The idx format of the MNIST family: magic number, sizes in big-endian 32 bits, then bytes."""

import gzip
import os
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighten.errors import UserError

_UNSIGNED_BYTE = 0x08
_MAX_BYTES = 1 << 31
"""Bytes of a file; the largest of the family has a quarter of that."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return an idx file's bytes as uint8.

    Args:
        path: without ``.gz``, which is tried second.
        dimensions: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        UserError: if neither file is there, or it is cut short, damaged or of another format.
    """
    found = next((p for p in (path, path.with_name(f"{path.name}.gz")) if os.path.isfile(p)), None)
    if found is None:
        raise UserError(f"{path} is missing, also with .gz; give the folder that holds the idx files")
    head = 4 + 4 * dimensions
    try:
        with gzip.open(found) if found.suffix == ".gz" else found.open("rb") as file:
            start = file.read(head)
            sizes = [int.from_bytes(start[i : i + 4], "big") for i in range(4, head, 4)]
            count = prod(sizes) if start[:4] == bytes([0, 0, _UNSIGNED_BYTE, dimensions]) else _MAX_BYTES
            content = file.read(count + 1) if count < _MAX_BYTES else b""  # no more than it says: a gzip can be a bomb
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{found} cannot be read ({error}); fetch it again") from error
    if len(content) != count:
        raise UserError(f"{found} is no complete idx file of {dimensions} dimensions; fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(sizes).copy())
