"""Loaders of data modules whose samples are in memory."""

from typing import Any, Protocol

import lightning as L
from torch.utils.data import DataLoader

from lighten.errors import UserError
from lighten.training.order import FixedOrder, OrderedLoader, loader_options, overfits


class InMemoryData(Protocol):
    """What the loaders read of a data module."""

    name: str
    batch_size: int
    seed: int
    workers: int
    keyed: bool
    train_set: Any
    trainer: Any


class HeldOut(Protocol):
    """A data module that holds samples out of its training part."""

    name: str
    validation: int


def check_validation(data: HeldOut, samples: int) -> None:
    """Raise ``UserError`` if the samples held out leave nothing of the training part."""
    if data.validation >= samples:
        raise UserError(f"data {data.name}: validation={data.validation} leaves nothing of {samples} training samples")


def shuffled(data: InMemoryData, lengths: Any = None) -> OrderedLoader:
    """Return shuffled training batches; a last one that is not full is dropped.

    Args:
        data: its ``train_set`` gets ``keyed``.
        lengths: of the samples, for batches of similar length.
    """
    data.train_set.keyed = data.keyed
    return OrderedLoader(
        data.train_set,
        batch_size=data.batch_size,
        seed=data.seed,
        workers=data.workers,
        lengths=lengths,
        shuffle=not overfits(data.trainer),
    )


def in_order(data: InMemoryData, dataset: Any) -> DataLoader[Any]:
    """Return all samples of a data set in their order."""
    order = FixedOrder(len(dataset), seed=data.seed)
    return DataLoader(dataset, batch_size=data.batch_size, sampler=order, **loader_options(data.workers))


class SplitData(L.LightningDataModule):
    """A data module whose ``setup`` makes ``train_set``, ``val_set`` and ``test_set`` of samples in memory.

    Attributes:
        name: in the registry.
        options: with which it was built.
        keyed: set it to have keys in training batches, one number for each view of each sample.
    """

    name: str = ""
    options: dict[str, Any]
    keyed: bool = False
    batch_size: int
    seed: int
    workers: int
    train_set: Any
    val_set: Any
    test_set: Any

    @property
    def lengths(self) -> Any:
        """Lengths of the training samples where batches go by them."""
        return None

    def train_dataloader(self) -> OrderedLoader:
        """Return shuffled, augmented batches; a last one that is not full is dropped."""
        return shuffled(self, self.lengths)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out samples in order: every choice is made on these."""
        return in_order(self, self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test samples in order: every reported figure comes from these."""
        return in_order(self, self.test_set)
