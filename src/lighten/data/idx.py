"""The idx format of the MNIST family: magic number, sizes in big-endian 32 bits, then bytes."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lighten.errors import UserError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return an idx file's bytes as uint8.

    Args:
        path: without ``.gz``, which is tried second.
        dimensions: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        UserError: if neither file is there, or it is cut short, damaged or of another format.
    """
    found = next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
    if found is None:
        raise UserError(f"{path} is missing, also with .gz; give the folder that holds the idx files")
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{found} cannot be read ({error}); fetch it again") from error
    head = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4)]
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]) or len(content) != head + prod(sizes):
        raise UserError(f"{found} is no complete idx file of {dimensions} dimensions; fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).reshape(sizes).copy())
