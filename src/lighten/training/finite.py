"""A fit that meets a NaN stops, and nothing of it is saved."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lighten.errors import UserError

_RUNNING = ("running_mean", "running_var")


class StopOnNonFinite(Callback):
    """Stops the fit on the first loss that is NaN or infinite, and lets no such weights be saved.

    Looks at the loss before each backward pass; all ranks agree, so they stop in the same step. A module that has
    ``blame()`` is asked where it comes from. Weights can
    also be spoilt by an overflowing gradient under a finite loss: they are looked at before each save.

    Raises:
        UserError: with the step and what to do.
    """

    def __init__(self) -> None:
        self._stopped: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        self._stopped = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        finite = bool(torch.isfinite(loss.detach()).all())
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            value = f"{float(loss.detach().mean())}" if not finite else "not finite on another rank"
            blame = getattr(pl_module, "blame", None)
            source = (blame() if blame is not None and not finite else None) or ""
            self._stop(
                trainer,
                f"the loss is {value} at step {trainer.global_step} (epoch {trainer.current_epoch}){source}; "
                "lower optimizer.lr, or look for such values in the data",
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is spoilt."""
        if self._stopped is not None:
            raise UserError(self._stopped)
        name = first_non_finite(pl_module)
        if name is not None:
            self._stop(
                trainer,
                f"{name} is no longer finite at step {trainer.global_step}, so nothing was saved; "
                "lower optimizer.lr, or set trainer.gradient_clip_val",
            )

    def _stop(self, trainer: L.Trainer, message: str) -> None:
        self._stopped = message
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = False
        raise UserError(message)


def first_non_finite(module: nn.Module) -> str | None:
    """Return the name of the first parameter or running statistic with a NaN or infinity, or ``None``.

    Other buffers may hold infinities by right (ranges not yet seen).
    """
    named: list[tuple[str, Tensor]] = [*module.named_parameters()]
    named += [(n, b) for n, b in module.named_buffers() if n.rpartition(".")[2] in _RUNNING]
    for name, value in named:
        if value.is_floating_point() and not bool(torch.isfinite(value.detach()).all()):
            return name
    return None
