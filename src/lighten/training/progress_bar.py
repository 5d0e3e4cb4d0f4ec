"""The progress bar of a fit."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor


def progress_bar(stage: str) -> ProgressBar:
    """Return a progress bar that names the stage; lines of plain text where the output is no terminal."""
    return StageBar(stage) if sys.stdout.isatty() else StageLines(stage)


class StageBar(RichProgressBar):
    """Lightning's Rich bar with the stage in front of the epoch.

    Args:
        stage: such as ``teacher`` or ``student``.
    """

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=4, leave=False)
        self.stage = stage

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what the module shows, without the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    @property
    def validation_description(self) -> str:
        """The text beside the validation bar."""
        return f"{self.stage} validation"

    @property
    def test_description(self) -> str:
        """The text beside the test bar."""
        return f"{self.stage} test"

    def _get_train_description(self, current_epoch: int) -> str:
        return _epoch(self.stage, self.trainer).ljust(len(self.validation_description))


class StageLines(ProgressBar):
    """One line an epoch, without control characters: ``student epoch 3/12 train/loss 0.41 (12 s)``.

    Of an epoch that a resumed fit continues, the seconds are those since then.

    Args:
        stage: such as ``teacher`` or ``student``.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self._enabled = True
        self._begun = 0.0

    def disable(self) -> None:
        """Keep silent: called on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of a continued epoch: nothing else begins it."""
        self._begun = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the epoch."""
        self._begun = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        if not self._enabled:
            return
        metrics = self.get_metrics(trainer, pl_module)
        shown = [f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float | Tensor)]
        seconds = f"({time.monotonic() - self._begun:.0f} s)"
        print(" ".join([_epoch(self.stage, trainer), *shown, seconds]), flush=True)


def _epoch(stage: str, trainer: L.Trainer) -> str:
    end = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"{stage} epoch {trainer.current_epoch + 1}{end}"
