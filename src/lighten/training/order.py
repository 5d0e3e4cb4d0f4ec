"""Data order and augmentation as pure functions of (seed, epoch, sample): any worker, any restart sees the same.

Random numbers come from a counter, not from a generator's history: the finalizer of SplitMix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators") applied to one coordinate after the other.
"""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from lighten.errors import UserError
from lighten.training.signals import die_with_parent

Place = tuple[int, int]
"""(epoch, sample): all that a dataset needs to make a sample, augmented or not."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


_SORTED_AT_ONCE = 50
"""Batches that :func:`bucket_order` sorts together: more pad less, fewer mix better."""

_BATCHES = 4
"""Stream of the order of batches."""


def draw(seed: int, epoch: Any, sample: Any, *, stream: Any = 0) -> np.ndarray:
    """Return 64 random bits per sample, as uint64.

    Args:
        seed: of the run.
        epoch: one number, or one per sample.
        sample: indices into the data set, one dimension; (N, 1) for several draws each.
        stream: which of a sample's many independent draws; (L,) makes it (N, L).
    """
    bits = np.zeros(np.shape(sample), np.uint64)
    with np.errstate(over="ignore"):
        for coordinate in (seed, stream, epoch, sample):
            bits = _mix(bits + np.asarray(coordinate).astype(np.uint64) + _GAMMA)
    return bits


def draw_below(limit: int, seed: int, epoch: Any, sample: Any, *, stream: Any) -> np.ndarray:
    """Return one integer in [0, ``limit``) per sample, as int64; ``limit`` is at most 2**32."""
    high = draw(seed, epoch, sample, stream=stream) >> np.uint64(32)
    return ((high * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def epoch_order(samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of ``range(samples)`` in which an epoch visits them, as int64."""
    return np.argsort(draw(seed, epoch, np.arange(samples)), kind="stable")


def bucket_order(lengths: np.ndarray, batch: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of an epoch whose batches hold samples of similar length, as int64.

    The order of :func:`epoch_order` is sorted by length within pools of up to 50 batches, at most a quarter of the
    epoch (as ``transformers``' LengthGroupedSampler does), and its batches are visited in random order. What does not
    fill a batch comes last, of any length.

    Args:
        lengths: (N,), of each sample.
        batch: samples of all processes together.
        seed: of the run.
        epoch: number.
    """
    order = epoch_order(len(lengths), seed=seed, epoch=epoch)
    batches = len(order) // batch
    head, tail = np.split(order, [batches * batch])
    pool = np.arange(len(head)) // (batch * min(_SORTED_AT_ONCE, max(1, batches // 4)))
    similar = head[np.lexsort((lengths[head], pool))].reshape(batches, batch)
    turns = np.argsort(draw(seed, epoch, np.arange(batches), stream=_BATCHES), kind="stable")
    return np.concatenate([similar[turns].reshape(-1), tail])


class DataOrder(Sampler[Place]):
    """Yields (epoch, sample) pairs of this process's share of an epoch.

    Rank and world size are asked of ``torch.distributed`` when an epoch begins; use it with
    ``Trainer(use_distributed_sampler=False)``. Shares have equal length: the order is filled up from its beginning.

    Args:
        samples: in the data set.
        seed: of the run.
        shuffle: a new permutation each epoch; else 0, 1, 2 …
        lengths: (``samples``,); given, a shuffled epoch is a :func:`bucket_order`, and has full batches only.
        batch_size: samples of one process in a batch, which ``lengths`` need.
    """

    def __init__(
        self, samples: int, *, seed: int, shuffle: bool, lengths: np.ndarray | None = None, batch_size: int = 1
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.shuffle = shuffle
        self.lengths = lengths
        self.batch_size = batch_size
        self.bucket: int | None = None
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        """Samples of one process in a whole epoch."""
        if self.lengths is not None:
            return self.samples // self.global_batch * self.batch_size
        return -(-self.samples // world_size())

    @property
    def global_batch(self) -> int:
        """Samples of all processes in a batch."""
        return self.batch_size * world_size()

    def __iter__(self) -> Iterator[Place]:
        """Yield this epoch's places; the first pass leaves out the first ``skip`` of them."""
        epoch, skip = self.epoch, self.skip
        self.skip = 0
        share = np.resize(self._order(epoch), len(self) * world_size())[_rank() :: world_size()]
        yield from ((epoch, sample) for sample in share[skip:].tolist())

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.samples)
        if self.lengths is None:
            return epoch_order(self.samples, seed=self.seed, epoch=epoch)
        return bucket_order(self.lengths, self.bucket or self.global_batch, seed=self.seed, epoch=epoch)

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of ``epoch``, unless it is this one. Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.skip = 0
            self.bucket = None


class FixedOrder(DataOrder, SequentialSampler):  # type: ignore[misc]
    """Yields samples as they lie, 0, 1, 2 …; Lightning knows by the type that nothing is shuffled.

    Args:
        samples: in the data set.
        seed: of the run.
    """

    def __init__(self, samples: int, *, seed: int) -> None:
        super().__init__(samples, seed=seed, shuffle=False)


class OrderedLoader(DataLoader[Any]):
    """A training ``DataLoader`` that resumes in mid-epoch where a checkpoint left off.

    Lightning keeps ``state_dict()`` in its checkpoints and gives it back before the resumed fit's first batch. What is
    counted are batches handed out, not batches that workers have fetched ahead; no global random state is touched.
    A last batch that is not full is dropped: batch norm cannot train on a lone sample.

    Args:
        dataset: has ``__len__`` and ``__getitems__``, which makes a whole batch of a list of (epoch, sample).
        batch_size: samples of one process.
        seed: of the order.
        workers: processes that fetch ahead; 0 fetches in this one.
        lengths: of each sample; given, a batch holds samples of similar length.
        shuffle: off, every epoch has the samples as they lie.

    Raises:
        UserError: if ``batch_size`` is below 1 or there is not one full batch.
    """

    def __init__(
        self, dataset: Any, *, batch_size: int, seed: int, workers: int = 0,
        lengths: np.ndarray | None = None, shuffle: bool = True,
    ) -> None:  # fmt: skip
        if shuffle:
            order = DataOrder(len(dataset), seed=seed, shuffle=True, lengths=lengths, batch_size=batch_size)
        else:
            order, lengths = FixedOrder(len(dataset), seed=seed), None
        most = len(dataset) // world_size() if lengths is not None else len(order)
        if not 1 <= batch_size <= most:
            raise UserError(
                f"batch_size={batch_size}, expected 1 to {most}, the training samples of one process: "
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
        state = {
            "seed": self.order.seed,
            "samples": self.order.samples,
            "epoch": self.order.epoch,
            "done": done * self._size * world_size(),
        }
        if self.order.lengths is not None:
            state["bucket"] = self.order.bucket or self.order.global_batch
        return state

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up a saved place; the number of processes may have changed.

        An epoch begun with lengths sorted for another global batch keeps that order to its end.

        Raises:
            UserError: if the order was another one.
        """
        if ("bucket" in state_dict) != (self.order.lengths is not None):
            raise UserError(
                f"the checkpoint's data order is {'' if 'bucket' in state_dict else 'not '}sorted by length, this "
                f"fit's is{' not' if 'bucket' in state_dict else ''}; resume with the same recipe, or start afresh"
            )
        for key in ("seed", "samples"):
            if state_dict[key] != getattr(self.order, key):
                raise UserError(
                    f"the checkpoint's data order has {key}={state_dict[key]}, this fit has "
                    f"{key}={getattr(self.order, key)}; resume with the same recipe, or start afresh"
                )
        done = state_dict["done"] // (self._size * world_size())
        self.order.epoch = state_dict["epoch"]
        self.order.skip = done * self._size
        self.order.bucket = state_dict.get("bucket")
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
        "worker_init_fn": _end_with_parent,
    }


def overfits(trainer: Any) -> bool:
    """Return whether the fit is to learn a few batches by heart (``overfit_batches``), so the same ones each epoch."""
    return trainer is not None and trainer.overfit_batches > 0


def world_size() -> int:
    """Return the number of processes of the fit; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _end_with_parent(worker: int) -> None:
    """Let a worker end when its parent is killed: PyTorch's own watch misses a kill while the worker starts."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid)


def _as_is(batch: Any) -> Any:
    return batch


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
