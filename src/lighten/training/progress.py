"""Progress of a fit, and its expected length."""

import math
import time
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lighten.errors import UserError


class Position(NamedTuple):
    """Where a fit is: ``done`` of ``total`` optimizer steps, or of what stands for them where those are not known."""

    done: int
    total: float

    @property
    def share(self) -> float:
        """What is done, in [0, 1]."""
        return min(1.0, self.done / self.total)


def fit_position(trainer: L.Trainer) -> Position:
    """Return what is done of the fit, and all of it by what is known now.

    Under automatic optimization both are optimizer steps: those done, those left of this epoch, and those of the epochs
    to come, each by its own accumulation. With optimization by hand nobody knows how many steps a batch takes: there
    ``max_steps`` counts, where it is set, and else batches, as if each optimizer took one step in each. The length of
    a loader that has none is that of the epochs before; in the first epoch the total is infinite.

    Raises:
        UserError: if the fit has no end that can be counted.
    """
    epochs, limit = _bounds(trainer)
    by_hand = not trainer.lightning_module.automatic_optimization
    if by_hand and epochs is not None:
        batches = _counted(trainer, epochs, by_hand=True)
        if limit is None:
            return batches
        steps = trainer.global_step
        share = max(batches.share, steps / limit)  # whichever end comes first
        return Position(steps, min(limit, round(steps / share)) if steps else limit)
    if epochs is None:
        assert limit is not None
        return Position(trainer.global_step, limit)
    done, total = _counted(trainer, epochs, by_hand=False)
    return Position(done, total if limit is None else min(total, limit))


def fit_progress(trainer: L.Trainer) -> float:
    """Return the share of the fit that is done, in [0, 1]: of its optimizer steps, as nearly as they are known.

    Raises:
        UserError: if the fit has no end that can be counted.
    """
    return fit_position(trainer).share


def fit_steps(trainer: L.Trainer) -> int:
    """Return the number of optimizer steps of the whole fit, before it begins.

    Raises:
        UserError: if it has no end that can be counted in steps.
    """
    total = fit_position(trainer).total
    if not math.isfinite(total):
        raise UserError("the data loader has no length, so nobody knows how many steps the fit has; set max_steps")
    return int(total)


def fell_short(trainer: L.Trainer) -> bool:
    """Return whether a fit that ended with something left to do is to blame: nobody interrupted or merely tried it."""
    return not (trainer.interrupted or trainer.received_sigterm or trainer.fast_dev_run)  # type: ignore[attr-defined]


def logs_now(trainer: L.Trainer) -> bool:
    """Return whether somebody hears of what this step logs: loggers at log points, other callbacks at an epoch's end.

    At other steps ``self.log`` costs as much, up to a millisecond for some values, and the Trainer passes none on.
    """
    return bool(trainer._logger_connector.should_update_logs or trainer.is_last_batch)


def is_last_step(trainer: L.Trainer) -> bool:
    """Say whether no optimizer step follows, however many were foreseen."""
    by_epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 == trainer.max_epochs
    return (by_epochs and trainer.is_last_batch) or 0 <= trainer.max_steps <= trainer.global_step


CLOCKS = ("system/step_ms", "system/samples_per_second")
"""What :class:`StepClock` measures: no two fits share it."""


class StepClock:
    """Measures steps and samples from one look to the next."""

    def __init__(self) -> None:
        self._begin()

    def count(self, batch: Any, *, stepped: bool) -> None:
        """Count one batch, and the optimizer step that it ended, if it did."""
        self._steps += stepped
        sizes = {t.shape[0] for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim}
        self._samples += max(sizes, default=0)

    def look(self) -> dict[str, float]:
        """Return milliseconds of a step and samples a second on this process since the last look."""
        passed = max(time.monotonic() - self._begun, 1e-9)
        found = {CLOCKS[1]: self._samples / passed} if self._samples else {}
        if self._steps:
            found[CLOCKS[0]] = 1000 * passed / self._steps
        self._begin()
        return found

    def _begin(self) -> None:
        self._begun, self._steps, self._samples = time.monotonic(), 0, 0


def _bounds(trainer: L.Trainer) -> tuple[int | None, int | None]:
    """Return the numbers of epochs and of steps at which the fit ends."""
    limit = trainer.max_steps if trainer.max_steps >= 0 else None
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if trainer.train_dataloader is None and epochs is not None:
        trainer.fit_loop.setup_data()
    unknown = not math.isfinite(trainer.num_training_batches)
    if limit == 0 or epochs == 0 or (limit is None and epochs is None):
        raise UserError(
            f"the fit has no end that can be counted (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}); "
            "set max_epochs or max_steps, also beside max_time"
        )
    if unknown and limit is not None:
        return None, limit
    if unknown and epochs == 1:
        raise UserError(
            "the data loader has no length and the fit one epoch, so it has no end that can be counted; set max_steps, "
            "or limit_train_batches to a number"
        )
    return epochs, limit


def _counted(trainer: L.Trainer, epochs: int, *, by_hand: bool) -> Position:
    """Return what is done and all there is, over ``epochs``: optimizer steps, or batches for steps taken by hand."""
    loop, epoch = trainer.fit_loop.epoch_loop, trainer.current_epoch
    epochs_so_far: Any = trainer.fit_loop.epoch_progress.current
    inside = epochs_so_far.started > epoch
    batches: Any = loop.batch_progress
    before = batches.total.processed - (batches.current.processed if inside else 0)
    length = trainer.num_training_batches
    if not math.isfinite(length):
        length = before / epoch if epoch else math.inf
    if by_hand:
        each, total = max(1, len(trainer.optimizers)), before + length * (epochs - epoch)
        return Position(each * batches.total.processed, each * (round(total) if math.isfinite(total) else total))
    here = loop.automatic_optimization.optim_progress.optimizer.step.current.completed if inside else 0
    if not math.isfinite(length):
        return Position(trainer.global_step, math.inf)
    to_come = sum(math.ceil(length / each) for each in _accumulations(trainer, range(epoch, epochs)))
    return Position(trainer.global_step, trainer.global_step - here + to_come)


def _accumulations(trainer: L.Trainer, epochs: range) -> list[int]:
    """Return over how many batches gradients are added up, in each of ``epochs``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return [callback.get_accumulate_grad_batches(epoch) for epoch in epochs]
    return [trainer.accumulate_grad_batches] * len(epochs)
