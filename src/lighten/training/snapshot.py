"""Saves the model at one point of the fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lighten.errors import UserError
from lighten.training.progress import fit_progress
from lighten.utils.files import write_whole


class Snapshot(Callback):
    """Saves once, on rank zero, when the fit's progress first reaches ``at``, before the step that follows.

    List it before callbacks that change the model at the same moment. ``save`` writes under a temporary
    name, so ``path`` is whole or not there; a fit that is resumed later finds it and does nothing.

    Args:
        path: the file or folder that is to be there afterwards.
        save: called with the LightningModule and the path to write to.
        at: share of the fit's optimizer steps, in [0, 1]; 0 is before the first step, 1 after the last, also of a
            fit that stops early.

    Raises:
        UserError: if ``at`` is out of its range.
    """

    def __init__(self, path: str | Path, save: Callable[[L.LightningModule, Path], Any], *, at: float = 0.0) -> None:
        if not 0.0 <= at <= 1.0:
            raise UserError(f"at={at}, expected a share of the fit in [0, 1]")
        self.path = Path(path)
        self.save = save
        self.at = at
        self._done = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out whether it is there, or the moment is already gone."""
        self._done = self.path.exists()
        step = trainer.global_step
        if not self._done and step > 0 and fit_progress(trainer) > self.at:
            self._done = True
            rank_zero_warn(f"{self.path} is missing and was due at {self.at:.0%} of the fit; it is not saved now")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if the moment has come."""
        self._take(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the moment has come, before a callback that is listed later changes the model."""
        self._take(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the moment is the end, wherever the fit has come to."""
        self._take(trainer, pl_module, ended=True)

    def _take(self, trainer: L.Trainer, pl_module: L.LightningModule, *, ended: bool = False) -> None:
        if self._done or not (fit_progress(trainer) >= self.at or (ended and self.at == 1.0)):
            return
        self._done = True
        if trainer.is_global_zero:
            write_whole(self.path, lambda path: self.save(pl_module, path))
