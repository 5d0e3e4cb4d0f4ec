"""Test and validation parts as stated shares: by what images are, never by a seed or their place in a list."""

import hashlib

import numpy as np
import torch

from lighten.data.find_images import TEST, TRAIN, VALIDATION
from lighten.data.split import stratified
from lighten.errors import UserError


def share_out(
    keys: list[str], classes: np.ndarray, *, test: float, validation: float, where: str, of: str = "images"
) -> np.ndarray:
    """Return the part of each sample, int8 (N,).

    Samples of one key stay together. Keys are chosen by their hash; each class gives its share of keys (a key has the
    class of its first sample), and keeps one for training before that.

    Args:
        keys: of the N samples.
        classes: int64 (N,); all zero where there are none.
        test: share of the keys, in [0, 1).
        validation: likewise.
        where: the samples are from, for messages.
        of: what keys stand for, likewise.

    Raises:
        UserError: if there are too few keys.
    """
    hashes = np.array([int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in keys], np.uint64)
    _, first, unit_of = np.unique(hashes, return_index=True, return_inverse=True)
    labels = classes[first]
    shares = {part: share for part, share in ((TEST, test), (VALIDATION, validation)) if share > 0}
    counts = {part: max(1, round(share * len(first))) for part, share in shares.items()}
    parts = np.full(len(first), TRAIN, np.int8)
    _, kept = np.unique(labels, return_index=True)
    for part, count in counts.items():
        free = np.setdiff1d(np.flatnonzero(parts == TRAIN), kept)
        if count > len(free):
            raise UserError(
                f"{where}: {len(first)} different {of}, too few to take test={test:g} and validation={validation:g} "
                f"and to leave one of each class for training; add some, or make the shares smaller"
            )
        _, chosen = stratified(torch.from_numpy(labels[free]), count)
        parts[free[chosen.numpy()]] = part
    return parts[unit_of]
