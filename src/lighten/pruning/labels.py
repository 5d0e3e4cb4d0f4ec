"""Channel labels: one integer for each element of a tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Labels:
    """Disjoint sets of labels, vectorised, some of them frozen.

    Two elements whose labels are in one set belong to one channel: both are removed, or neither. A label tensor has
    the shape of the tensor that it stands beside; dimensions along which it does not vary have stride 0, so that
    the labels of an activation take the memory of its channels alone.

    Attributes:
        unread: what is labelled now reaches no output of the network: nothing of it is frozen.
    """

    def __init__(self) -> None:
        self.unread = False
        self._parent = torch.empty(0, dtype=torch.int64)  # of labels yet to come, too: twice as many whenever it ends
        self._size = 0
        self._frozen: list[tuple[Tensor, str]] = []

    @property
    def size(self) -> int:
        """How many labels were given out."""
        return self._size

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new labels, each in a set of its own."""
        new = torch.arange(self._size, self._size + count)
        self._size += count
        if self._size > len(self._parent):
            self._parent = torch.cat([self._parent, torch.arange(len(self._parent), 2 * self._size)])
        return new

    def fixed(self, shape: Sequence[int], why: str) -> Tensor:
        """Return one new frozen label, spread over ``shape``: for what the forward makes and no weight owns."""
        label = self.fresh(1)
        self.freeze(label, why)
        return label.reshape((1,) * len(shape)).expand(shape)

    def find(self, labels: Tensor) -> Tensor:
        """Return the representative of each label's set; equal if and only if the sets are."""
        found = self._parent[labels]
        while not torch.equal(above := self._parent[found], found):
            found = above
        self._parent[labels] = found
        return found

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Make one set of the sets of ``a[i]`` and ``b[i]``, for every i; the shapes are equal."""
        while True:
            one, other = self.find(a), self.find(b)
            low, high = torch.minimum(one, other), torch.maximum(one, other)
            differ = low != high
            if not differ.any():
                return
            self._parent.scatter_reduce_(0, high[differ], low[differ], "amin")

    def unite_along(self, labels: Tensor, dim: int) -> Tensor:
        """Unite the labels of each slice of ``dim``; return them as a vector of that dimension's length."""
        rows = compact(labels, keep=dim).movedim(dim, 0).reshape(labels.size(dim), -1)
        self.unite(rows, rows[:, :1].expand_as(rows))
        return rows[:, 0]

    def tie_idle(self, elements: Tensor, used: Tensor) -> None:
        """Let elements of a tensor that nothing reads go with the others along the dimension in which those differ."""
        found = self.find(elements)
        for dim in range(found.ndim):
            low = torch.where(used, found, self._size).movedim(dim, 0).flatten(1).amin(1)
            high = torch.where(used, found, -1).movedim(dim, 0).flatten(1).amax(1)
            if bool((low == high).all()) and len(torch.unique(low)) > 1:
                self.unite(elements, along(low, elements.shape, dim))
                return

    def freeze(self, labels: Tensor, why: str) -> None:
        """Never remove these labels, nor any of their sets; the first reason given is kept."""
        if not self.unread:
            self._frozen.append((torch.unique(compact(labels)), why))

    def reasons(self) -> dict[int, str]:
        """Return why each frozen set is frozen, by its representative."""
        found: dict[int, str] = {}
        for labels, why in self._frozen:
            for root in torch.unique(self.find(labels)).tolist():
                found.setdefault(root, why)
        return found


def varies(labels: Tensor, dim: int) -> bool:
    """Say whether labels may differ along ``dim``: only where they are stored apart."""
    return labels.size(dim) > 1 and labels.stride(dim) != 0


def varies_only(labels: Tensor, dim: int) -> bool:
    """Say whether labels differ along ``dim`` and along no other."""
    return all(varies(labels, d) == (d == dim % labels.ndim) for d in range(labels.ndim))


def compact(labels: Tensor, *, keep: int | None = None) -> Tensor:
    """Return ``labels`` with one entry along each dimension that does not vary, save ``keep``."""
    for dim in range(labels.ndim):
        if not varies(labels, dim) and labels.size(dim) > 1 and (keep is None or dim != keep % labels.ndim):
            labels = labels.narrow(dim, 0, 1)
    return labels


def spread(labels: Tensor) -> Tensor:
    """Return equal labels that are stored once along each dimension in which they are all the same."""
    small = compact(labels)
    for dim in range(small.ndim):
        if small.size(dim) > 1 and bool((small == (first := small.narrow(dim, 0, 1))).all()):
            small = first
    return small.expand(labels.shape)


def along(vector: Tensor, shape: tuple[int, ...] | torch.Size, dim: int) -> Tensor:
    """Return ``vector`` laid along ``dim`` of ``shape``, the same everywhere else."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(shape)


def rows_along(labels: Tensor, dim: int) -> Tensor:
    """Return the labels at each place along ``dim``, (size, …)."""
    rows = compact(labels, keep=dim).movedim(dim, 0)
    return rows.reshape(len(rows), max(1, rows[:1].numel()))  # there may be no place at all
