"""Splits of a search: what is trained on, searched by, chosen by, and confirmed by; no sample is in two of them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from lighten.errors import UserError, one_line
from lighten.training.order import DataOrder, epoch_order

LEAST = 30
"""Samples of a part: of fewer, a metric says nothing."""
_PROBED = 32
_LOADER_SETTINGS = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "prefetch_factor", "persistent_workers", "generator",
)  # fmt: skip


@dataclass(frozen=True)
class Splits:
    """Data loaders of a search.

    Attributes:
        train: as the data module gives it.
        guide: seen by the search as often as it likes.
        select: what the choice among finished trials is made on.
        confirm: seen once, at the end.
    """

    train: Any
    guide: DataLoader[Any]
    select: DataLoader[Any]
    confirm: DataLoader[Any]

    @property
    def samples(self) -> dict[str, int]:
        """How many samples each part has."""
        return {name: len(getattr(self, name).dataset) for name in ("train", "guide", "select", "confirm")}


class Part(Dataset[Any]):
    """Some samples of a data set, in order.

    Args:
        dataset: map-style.
        samples: numbers in it.
        placed: its ``__getitems__`` takes (epoch, sample), of which the epoch is 0 here.
    """

    def __init__(self, dataset: Any, samples: Sequence[int], *, placed: bool = False) -> None:
        self.dataset = dataset
        self.samples = list(samples)
        self.placed = placed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        """Return one sample."""
        return self.dataset[self.samples[number]]

    def __getitems__(self, numbers: list[int]) -> Any:
        """Return what the data set gives for several samples."""
        chosen = [self.samples[number] for number in numbers]
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [self.dataset[sample] for sample in chosen]
        return self.dataset.__getitems__([(0, sample) for sample in chosen] if self.placed else chosen)


def splits_of(datamodule: L.LightningDataModule, *, seed: int = 0) -> Splits:
    """Return the splits of a data module, which is set up unless it is already; the same for the same seed.

    The validation part becomes ``guide``, a quarter of it, and ``select``; the test part becomes ``confirm``. Without a
    test part, or where it is the validation part again, the validation part becomes all three, the guide a sixth. Batch
    size, collate function and workers stay those of the loader that a part comes from.

    Args:
        datamodule: its loaders give map-style data sets.
        seed: of the division, and of what ``setup`` draws.

    Raises:
        UserError: if there is no validation part, samples cannot be told apart, or a part would be too small.
    """
    if not isinstance(datamodule, L.LightningDataModule):
        raise UserError(
            f"datamodule is of type {type(datamodule).__name__}, expected a LightningDataModule; "
            "LightningDataModule.from_datasets makes one of data sets"
        )
    name = _name(datamodule)
    train, validation = (_loader(datamodule, part, "fit", seed) for part in ("train", "val"))
    if train is None:
        raise UserError(f"{name} has no train_dataloader; expected one to train on")
    if validation is None:
        raise UserError(f"{name} has no val_dataloader; hold samples out of training to search and choose by")
    if _same_data(train.dataset, validation.dataset):
        raise UserError(f"{name}: val_dataloader gives samples of training; hold some out of it")
    chosen = _chosen(validation, "val_dataloader")
    order = [chosen[i] for i in epoch_order(len(chosen), seed=seed, epoch=0).tolist()]
    test = _loader(datamodule, "test", "test", seed)
    if test is None or _same_data(test.dataset, validation.dataset):
        _check_size(len(order), 3, "as no others are left to confirm by; add a test part, or hold out more")
        guide, select, confirm = (_part(validation, samples) for samples in _shared(order, 3))
        return Splits(train, guide, select, confirm)
    if _same_data(train.dataset, test.dataset):
        raise UserError(f"{name}: test_dataloader gives samples of training; hold some out of it")
    _check_size(len(order), 2, "hold out more")
    samples = _chosen(test, "test_dataloader")
    if len(samples) < LEAST:
        raise UserError(f"the test part has {len(samples)} samples, expected {LEAST} or more to confirm by; add some")
    guide, select = (_part(validation, some) for some in _shared(order, 2))
    return Splits(train, guide, select, _part(test, samples))


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Let what a data module draws depend on the seed alone, and leave the process's own random numbers alone."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (a user's own draws come from there)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _loader(datamodule: L.LightningDataModule, part: str, stage: str, seed: int) -> DataLoader[Any] | None:
    """Return a part's loader, of what is set up already if it is; ``None`` where the data module has none."""
    hook = f"{part}_dataloader"
    if not is_overridden(hook, datamodule):
        return None
    try:
        loader: Any = getattr(datamodule, hook)()
    except Exception:  # not set up; if it is something else it comes again
        try:
            with _drawing(seed):
                datamodule.prepare_data()
                datamodule.setup(stage)
            loader = getattr(datamodule, hook)()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{_name(datamodule)}: {hook} fails: {one_line(error) or type(error).__name__}") from error
    if isinstance(loader, list | tuple):
        if len(loader) > 1:
            raise UserError(f"{hook} gives {len(loader)} loaders, expected one; join their data sets")
        loader = loader[0] if loader else None
    if loader is None:
        return None
    if not isinstance(loader, DataLoader):
        raise UserError(f"{hook} gives {type(loader).__name__}, expected a torch DataLoader with a map-style data set")
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise UserError(f"{hook} has an iterable data set, whose samples have no numbers; expected a map-style one")
    if loader.batch_sampler is None:
        raise UserError(f"{hook} has batch_size=None, so that samples cannot be told apart; give it a batch size")
    return loader


def _chosen(loader: DataLoader[Any], hook: str) -> list[int]:
    """Return the numbers of the samples that a loader gives, in order."""
    sampler = loader.sampler
    every = isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler | DataOrder)
    if every and type(loader.batch_sampler) is torch.utils.data.BatchSampler:
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    batches: Any = loader.batch_sampler
    passes = [sorted({int(sample) for batch in batches for sample in batch}) for _ in range(2)]
    if passes[0] != passes[1]:
        raise UserError(
            f"{hook}: its sampler gives other samples each time, expected the same ones; shuffle nothing there"
        )
    return passes[0]


def _same_data(first: Any, second: Any) -> bool:
    """Return whether two data sets are the same samples, or share some, as far as can be told without reading all."""
    one, other = (_rooted(data) for data in (first, second))
    if one[0] is other[0]:
        return bool(set(one[1]) & set(other[1]))
    if len(first) != len(second) or not len(first):
        return False
    probes = np.unique(np.linspace(0, len(first) - 1, _PROBED).astype(int)).tolist()
    return all(same(first[i], second[i]) for i in probes)


def _rooted(data: Any) -> tuple[Any, Sequence[int]]:
    """Return the data set that others are subsets of, and the numbers in it."""
    numbers: Sequence[int] = range(len(data))
    while isinstance(data, Subset):
        numbers = [int(data.indices[i]) for i in numbers]
        data = data.dataset
    return data, numbers


def same(one: Any, other: Any) -> bool:
    """Return whether two samples or batches are the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor | np.ndarray):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _check_size(samples: int, parts: int, advice: str) -> None:
    if samples // parts < LEAST:
        raise UserError(
            f"the validation part has {samples} samples, expected {parts * LEAST} or more for {parts} parts; {advice}"
        )


def _shared(order: list[int], parts: int) -> list[list[int]]:
    """Return the guide, half as large as an equal part would be, and equal others: what decides is worth samples."""
    guide = min(len(order) // parts, max(LEAST, len(order) // (2 * parts)))
    rest = np.array_split(np.array(order[guide:]), parts - 1)
    return [sorted(order[:guide]), *(sorted(part.tolist()) for part in rest)]


def _part(loader: DataLoader[Any], samples: Sequence[int]) -> DataLoader[Any]:
    settings = {name: getattr(loader, name) for name in _LOADER_SETTINGS if hasattr(loader, name)}
    size = loader.batch_size
    if size is None:  # batches by a sampler of one's own
        batches: Any = loader.batch_sampler
        size = getattr(batches, "batch_size", None) or max(map(len, batches))
    part = Part(loader.dataset, samples, placed=isinstance(loader.sampler, DataOrder))
    return DataLoader(part, batch_size=size, shuffle=False, **settings)


def _name(datamodule: L.LightningDataModule) -> str:
    name = getattr(datamodule, "name", None)
    return f"data {name}" if isinstance(name, str) and name else type(datamodule).__name__
