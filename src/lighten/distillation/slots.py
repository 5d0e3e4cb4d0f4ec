"""Slots: a teacher's outputs as bytes, rounded, or the largest few of many, each sample with its checksum."""

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """How the outputs of a sample become bytes.

    Without ``top_k`` they are rounded to ``dtype``. With it, the ``top_k`` largest of the C log-probabilities
    log p = log_softmax(outputs) are kept with their classes, and the rest of the mass is spread evenly: every other
    class gets log((1 - sum of the kept p) / (C - top_k)). That number is stored as well, since after rounding the
    difference in it would look like zero. What comes back are log-probabilities, equal to the outputs up to a
    constant per sample wherever a class was kept; only a softmax over classes may be taught with them.

    Args:
        outputs: numbers per sample.
        dtype: one of ``settings.CACHE_DTYPES``.
        top_k: below ``outputs``; ``None`` keeps all.
    """

    outputs: int
    dtype: str
    top_k: int | None = None

    @cached_property
    def fields(self) -> np.dtype[Any]:
        """The NumPy dtype of one slot: ``crc``, ``values`` and, with ``top_k``, ``classes``."""
        stored = np.dtype(self.dtype).newbyteorder("<")
        if self.top_k is None:
            return np.dtype([("crc", "<u4"), ("values", stored, (self.outputs,))])
        index = "<u2" if self.outputs <= 1 << 16 else "<u4"
        return np.dtype([("crc", "<u4"), ("values", stored, (self.top_k + 1,)), ("classes", index, (self.top_k,))])

    def encode(self, values: Tensor, keys: np.ndarray) -> np.ndarray:
        """Return the slots (batch,) of outputs float32 (batch, outputs) on the CPU; too large ones become infinite."""
        rows = np.zeros(len(keys), self.fields)
        with np.errstate(over="ignore"):
            if self.top_k is None:
                rows["values"] = values.numpy()
            else:
                logs = torch.log_softmax(values.double(), 1)
                kept, classes = logs.topk(self.top_k, 1)
                others = logs.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
                others -= math.log(self.outputs - self.top_k)
                lowest = float(np.finfo(self.dtype).min)
                rows["values"] = torch.cat([kept, others], 1).clamp(min=lowest).numpy()
                rows["classes"] = classes.numpy()
        rows["crc"] = _checksums(rows, keys)
        return rows

    def decode(self, rows: np.ndarray) -> Tensor:
        """Return the outputs float32 (batch, outputs) of slots (batch,)."""
        values = rows["values"].astype(np.float32)
        if self.top_k is not None:
            kept, values = values, np.repeat(values[:, -1:], self.outputs, axis=1)
            np.put_along_axis(values, rows["classes"].astype(np.int64), kept[:, :-1], axis=1)
        return torch.from_numpy(values)

    def sound(self, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which slots (batch,) are whole, in their place, and hold what a teacher can have said."""
        known = (rows["crc"] == _checksums(rows, keys)) & np.isfinite(rows["values"]).all(1)
        return known & (rows["classes"] < self.outputs).all(1) if self.top_k is not None else known


def _checksums(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of each slot's bytes after its own first four, started at its key."""
    data, width = memoryview(rows.tobytes()), rows.itemsize
    starts = range(0, len(data), width)
    return np.array(
        [zlib.crc32(data[at + 4 : at + width], key) for at, key in zip(starts, keys.tolist(), strict=True)], np.uint32
    )
