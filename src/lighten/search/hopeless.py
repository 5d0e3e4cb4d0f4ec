"""Hopeless: ends the fit of a sweep's trial that falls behind the others."""

from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lighten.errors import UserError


class HopelessError(UserError):
    """A trial was stopped, as it falls behind the others."""


class StopHopeless(Callback):
    """Reports each validation and ends the fit where the answer is that the trial is hopeless; ranks agree on it.

    What is reported is the metric of the best checkpoint, turned so that more is better.

    Args:
        report: takes the metric and the epoch, and returns whether the trial is hopeless; ``None`` on further ranks.
    """

    def __init__(self, report: Callable[[float, int], bool] | None) -> None:
        self.report = report

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, agree, and stop.

        Raises:
            HopelessError: on all ranks, if so.
        """
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
        if trainer.sanity_checking or best is None or best.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[best.monitor])
        epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and epoch + 1 >= trainer.max_epochs
        hopeless = False
        if self.report is not None and trainer.is_global_zero:
            hopeless = self.report(-value if best.mode == "min" else value, epoch) and not last
        if trainer.strategy.broadcast(hopeless):
            raise HopelessError(f"stopped after epoch {epoch}: {best.monitor} {value:.4g} is behind the other trials")
