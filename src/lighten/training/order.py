"""Data order and augmentation as pure functions of (seed, epoch, sample): any worker, any restart sees the same.

Random numbers come from a counter, not from a generator's history: the finalizer of SplitMix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators") applied to one coordinate after the other.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

from lighten.errors import UserError

Place = tuple[int, int]
"""(epoch, sample): all that a dataset needs to make a sample, augmented or not."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def draw(seed: int, epoch: Any, sample: Any, *, stream: int = 0) -> np.ndarray:
    """Return 64 random bits per sample, as uint64.

    Args:
        seed: of the run.
        epoch: one number, or one per sample.
        sample: indices into the data set, one dimension.
        stream: which of a sample's many independent draws.
    """
    bits = np.zeros(np.shape(sample), np.uint64)
    with np.errstate(over="ignore"):
        for coordinate in (seed, stream, epoch, sample):
            bits = _mix(bits + np.asarray(coordinate).astype(np.uint64) + _GAMMA)
    return bits


def draw_below(limit: int, seed: int, epoch: Any, sample: Any, *, stream: int) -> np.ndarray:
    """Return one integer in [0, ``limit``) per sample, as int64; ``limit`` is at most 2**32."""
    high = draw(seed, epoch, sample, stream=stream) >> np.uint64(32)
    return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def epoch_order(samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of ``range(samples)`` in which an epoch visits them, as int64."""
    return np.argsort(draw(seed, epoch, np.arange(samples)), kind="stable")


class DataOrder(Sampler[Place]):
    """Yields (epoch, sample) pairs of this process's share of an epoch.

    Rank and world size are asked of ``torch.distributed`` when an epoch begins; use it with
    ``Trainer(use_distributed_sampler=False)``. Shares have equal length: the order is filled up from its beginning.

    Args:
        samples: in the data set.
        seed: of the run.
        shuffle: a new permutation each epoch; else 0, 1, 2 …
    """

    def __init__(self, samples: int, *, seed: int, shuffle: bool) -> None:
        self.samples = samples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        """Samples of one process in a whole epoch."""
        return -(-self.samples // world_size())

    def __iter__(self) -> Iterator[Place]:
        """Yield this epoch's places; the first pass leaves out the first ``skip`` of them."""
        epoch, skip = self.epoch, self.skip
        self.skip = 0
        every = np.arange(self.samples)
        order = epoch_order(self.samples, seed=self.seed, epoch=epoch) if self.shuffle else every
        share = np.resize(order, len(self) * world_size())[_rank() :: world_size()]
        yield from ((epoch, sample) for sample in share[skip:].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of ``epoch``, unless it is this one. Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.skip = 0


class OrderedLoader(DataLoader[Any]):
    """A training ``DataLoader`` that goes on in mid-epoch where a checkpoint left off.

    Lightning keeps ``state_dict()`` in its checkpoints and gives it back before the resumed fit's first batch. What is
    counted are batches handed out, not batches that workers have fetched ahead; no global random state is touched.
    A last batch that is not full is dropped: batch norm cannot train on a lone sample.

    Args:
        dataset: has ``__len__`` and ``__getitems__``, which makes a whole batch of a list of (epoch, sample).
        batch_size: samples of one process.
        seed: of the order.
        workers: processes that fetch ahead; 0 fetches in this one.

    Raises:
        UserError: if ``batch_size`` is below 1 or there is not one full batch.
    """

    def __init__(self, dataset: Any, *, batch_size: int, seed: int, workers: int = 0) -> None:
        order = DataOrder(len(dataset), seed=seed, shuffle=True)
        if not 1 <= batch_size <= len(order):
            raise UserError(
                f"batch_size={batch_size}, expected 1 to {len(order)}, the training samples of one process: "
                "a batch must be full"
            )
        super().__init__(dataset, batch_size=batch_size, sampler=order, drop_last=True, **loader_options(workers))
        self.order = order
        self._size = batch_size
        self._done = (0, 0)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the rest of the epoch; its number is read at the first batch, after Lightning has set it."""
        epoch, start = self.order.epoch, self.order.skip // self._size
        for done, batch in enumerate(super().__iter__(), start + 1):
            self._done = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the epoch stands; ``done`` counts the samples of all processes."""
        epoch, done = self._done
        if epoch != self.order.epoch:
            done = 0
        return {
            "seed": self.order.seed,
            "samples": self.order.samples,
            "epoch": self.order.epoch,
            "done": done * self._size * world_size(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up a saved place; the number of processes may have changed.

        Raises:
            UserError: if the order was another one.
        """
        for key in ("seed", "samples"):
            if state_dict[key] != getattr(self.order, key):
                raise UserError(
                    f"the checkpoint's data order has {key}={state_dict[key]}, this fit has "
                    f"{key}={getattr(self.order, key)}; resume with the same recipe, or start afresh"
                )
        done = state_dict["done"] // (self._size * world_size())
        self.order.epoch = state_dict["epoch"]
        self.order.skip = done * self._size
        self._done = (self.order.epoch, done)


def loader_options(workers: int) -> dict[str, Any]:
    """Return the arguments that all of a fit's data loaders share.

    The generator keeps a loader from drawing its workers' seeds from torch's global random state.
    """
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),
        "collate_fn": _as_is,
    }


def world_size() -> int:
    """Return the number of processes of the fit; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _as_is(batch: Any) -> Any:
    return batch


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
