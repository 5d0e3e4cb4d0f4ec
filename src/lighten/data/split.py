"""Stratified splits that depend on the data alone: every run of every seed validates on the same samples."""

import numpy as np
import torch
from torch import Tensor

from lighten.training.order import epoch_order

_SEED = 20170828
"""Any constant would do; the splits of all runs hang on this one."""


def stratified(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the rest and of ``count`` chosen samples, both ascending, int64.

    Each class gives its share, to one sample (largest remainder); within a class a fixed hash of the position chooses.

    Args:
        labels: int64 (N,).
        count: samples to choose, from 0 to N.
    """
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    exact = sizes * count / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = epoch_order(len(labels), seed=_SEED, epoch=0)
    shuffled = labels.numpy()[order]
    chosen = np.concatenate([order[shuffled == c][:q] for c, q in zip(classes, quota, strict=True)])
    mask = np.zeros(len(labels), bool)
    mask[chosen] = True
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def whole_groups(keys: np.ndarray, labels: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the rest and of ``count`` chosen groups, both ascending, int64; no group is on both sides.

    Args:
        keys: uint64 (N,), of each row's group; neither their order nor a seed matters.
        labels: int64 (N,), of the classes that give their share; that of a group's first row counts.
        count: groups to choose; no more than there are.
    """
    _, first, group_of = np.unique(keys, return_index=True, return_inverse=True)
    _, chosen = stratified(labels[torch.from_numpy(first)], min(count, len(first)))
    held_out = np.isin(group_of, chosen.numpy())
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
