"""CachedTeacher: gives the logits of training batches, from a cache where there is one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lighten.distillation.batch_checks import first_non_finite
from lighten.distillation.cache import TeacherCache
from lighten.distillation.teacher import Teacher
from lighten.errors import UserError
from lighten.tasks.task import Task
from lighten.utils.inputs import Call


def check_cacheable(compared: Sequence[str], *, task: Task, sharded: bool) -> None:
    """Raise ``UserError`` where a cache does not replace the teacher.

    Args:
        compared: the losses that compare layers.
        task: what is answered.
        sharded: whether the teacher is.
    """
    if compared:
        names = ", ".join(compared)
        raise UserError(f"cache keeps logits alone, {names} compare layers; leave the cache out, or these losses")
    if task.answer_dims not in (None, 2):
        raise UserError(
            f"cache keeps a row of numbers a sample, task={task.name!r} answers {task.answer_text}; leave the cache out"
        )
    if sharded:
        raise UserError("cache asks the teacher on one rank and not on another, its shards need all; leave one out")


class CachedTeacher:
    """Asks a teacher once for each view of each training sample, and reads its logits from then on.

    Without a cache the teacher is asked every time, and all else does nothing.

    Args:
        teacher: ``None`` where there is nobody to ask.
        cache: open already, or opened by ``open``.
    """

    def __init__(self, teacher: Teacher | None, cache: TeacherCache | None = None) -> None:
        self.teacher = teacher
        self.cache = cache
        self._batch_size = 0
        self._rank, self._world = 0, 1

    def open(
        self, data: Any, *, outputs: int | None, precision: str, rank: int, world: int, asked: str | None = None
    ) -> None:
        """Begin a fit: open the cache, unless it is open.

        Args:
            data: the data module, which has ``fingerprint``, ``train_samples`` and ``views``.
            outputs: numbers per sample.
            precision: of the fit, in which the teacher computes where it has none of its own.
            rank: of this process.
            world: number of processes.
            asked: where the teacher's arguments come from, if not from the batch as it is.

        Raises:
            UserError: if one of them is missing, or as :meth:`TeacherCache.open`.
        """
        self._rank, self._world = rank, world
        if self.cache is None or self.cache.samples:
            return
        if self.teacher is None or not hasattr(data, "train_samples") or outputs is None:
            raise UserError(
                "cache is not open, and opens itself only with num_classes, a teacher, and a data module that has "
                "fingerprint, train_samples and views; call cache.open(…) first"
            )
        identity = {
            "teacher": self.teacher.fingerprint,
            "data": data.fingerprint,
            "precision": self.teacher.precision or precision,
        }
        if asked is not None:
            identity["asked"] = asked
        if data.views != 1:
            identity["augmentation seed"] = str(data.seed)
        self.cache.open(identity, samples=data.train_samples, views=data.views, outputs=outputs, rank=rank, world=world)
        if rank == 0:
            print(self.cache.announce())

    def logits(self, call: Call, keys: Tensor | None, device: torch.device, *, look: bool) -> Tensor:
        """Return the teacher's logits of a training batch, on ``device``.

        Args:
            call: arguments of the teacher, on ``device``.
            keys: of the samples, int64 (batch,); needed by a cache.
            device: of the student.
            look: whether logits that are computed without a cache are looked at, for which the host waits.

        Raises:
            UserError: if the keys are missing, or logits are not finite.
        """
        assert self.teacher is not None
        if self.cache is None:
            logits = self.teacher.logits(call, device)
            return _finite(logits) if look else logits
        if keys is None:
            raise UserError(
                "cache needs batches with keys, one number a sample and view: (inputs, labels, keys) or a mapping with "
                "'keys'; set keyed on the data module, or leave the cache out"
            )
        keys = keys.cpu()
        self._batch_size = max(self._batch_size, len(keys))
        known, there = self.cache.read(keys)
        if not bool(there.all()):  # all of the batch, so that a row's bits do not depend on what a kill has left
            logits = _finite(self.teacher.logits(call, device)).float().cpu()
            known[~there] = self.cache.write(keys[~there], logits[~there])
        return known.to(device, non_blocking=True)

    def dropped(self, epoch: int) -> list[int]:
        """Return the samples that the loader dropped with the last batch of an epoch, this rank's share of them."""
        if self.cache is None:
            return []
        self.cache.refresh()
        missing = self.cache.missing(epoch % self.cache.views)
        if not 0 < len(missing) < self._batch_size * self._world:
            return []  # all are there, or the epoch was cut short
        # shared out by sample, not by place in the list: another rank may have written some of it already
        samples = missing % self.cache.samples
        return samples[samples % self._world == self._rank].tolist()

    def refresh(self) -> None:
        """Flush what this process has cached, and look for what others have."""
        if self.cache is not None and self.cache.samples:
            self.cache.refresh()


def _finite(logits: Tensor) -> Tensor:
    sample = first_non_finite(logits)
    if sample is not None:
        raise UserError(
            f"the teacher's logits are not finite for sample {sample} of the batch; look at that sample, or run the "
            "teacher in float32 (teacher_precision)"
        )
    return logits
