"""Quantization-aware training as a callback: when fake-quantization begins and when its ranges freeze."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lighten.errors import UserError
from lighten.names import find_module
from lighten.quantization.insert import BANK, bank_of, quantize_, summary
from lighten.quantization.layers import FoldedNorm
from lighten.quantization.sites import ActivationRanges, Stage
from lighten.training.example import example_call
from lighten.training.progress import fit_progress


class Quantize(L.Callback):
    """Train through int8, from a fraction of the fit on, in any LightningModule.

    Fake-quantizers are inserted, switched off, in ``setup``, before a strategy wraps the module. At ``begin`` batch
    norm is folded with its running statistics and one step observes; from the next step on weights and activations are
    fake-quantized. Activation ranges follow the data, over all ranks alike, until ``freeze``. Evaluation never moves
    them. Stage and ranges are part of the module's state dict, so that a checkpoint resumes or is tested as it was.

    Frozen statistics no longer tame large steps: SGD with momentum, at a rate that batch norm allowed, may diverge from
    ``begin`` on. Set the trainer's ``gradient_clip_val`` (1.0 serves); a warning says so.

    Logs ``quantize/enabled`` and ``quantize/frozen`` (0 or 1) once a step.

    Args:
        begin: share of the fit's optimizer steps after which fake-quantization begins, in [0, 1).
        freeze: share after which ranges no longer move, from ``begin`` to 1.
        ranges: ``"moving_average"`` or ``"min_max"``.
        weight_bits: 2 to 8.
        exclude: names or patterns of layers that stay in floating point.
        module: which submodule; by default ``student`` where there is one, else all of it.

    Raises:
        UserError: on a setting out of range; in ``setup``, on names that match nothing or a model without layers to
            quantize; during the fit, on activations that are not finite.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[Quantize(begin=0.5)])  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        begin: float = 0.7,
        freeze: float = 0.9,
        ranges: str = "moving_average",
        weight_bits: int = 8,
        exclude: Sequence[str] = (),
        module: str | None = None,
    ) -> None:
        if not (math.isfinite(begin) and 0 <= begin < 1):
            raise UserError(f"quantize begin={begin}: expected a share of the fit in [0, 1)")
        if not (math.isfinite(freeze) and begin <= freeze <= 1):
            raise UserError(f"quantize freeze={freeze}: expected a share of the fit from begin={begin} to 1")
        self.begin, self.freeze, self.module = begin, freeze, module
        self._settings: dict[str, Any] = {"ranges": ranges, "weight_bits": weight_bits, "exclude": list(exclude)}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Insert fake-quantizers, unless an earlier call of the trainer did."""
        target = find_module(pl_module, self.module)[1]
        if hasattr(target, BANK):
            return
        args, kwargs = example_call(trainer, pl_module, target)
        quantize_(target, example_input=kwargs if kwargs and not args else args, **self._settings)
        rank_zero_info(f"quantize: {summary(target)}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where steps may become too large once batch norm's statistics are frozen."""
        folds = any(isinstance(m, FoldedNorm) for m in find_module(pl_module, self.module)[1].modules())
        momentum = any(group.get("momentum") for optimizer in trainer.optimizers for group in optimizer.param_groups)
        by_hand = not pl_module.automatic_optimization
        if folds and momentum and not (trainer.gradient_clip_val or by_hand):
            rank_zero_warn(
                "quantize: SGD with momentum may diverge once batch norm's statistics are frozen; "
                "set gradient_clip_val=1.0 on the trainer"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Enable what this point of the fit asks for."""
        bank, progress = self._bank(pl_module), fit_progress(trainer)
        if bank.stage == Stage.OFF and progress >= self.begin:
            bank.stage = Stage.OBSERVE
        bank.observing = bank.stage == Stage.OBSERVE or (bank.stage == Stage.ON and progress < self.freeze)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the ranges; the first time, fake-quantization is on from here."""
        bank = self._bank(pl_module)
        frozen = bank.stage == Stage.ON and not bank.observing
        if bank.observing:
            bank.update()
            bank.observing = False
            bank.stage = Stage.ON
        enabled = bank.stage == Stage.ON
        pl_module.log_dict({"quantize/enabled": float(enabled), "quantize/frozen": float(frozen)})

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no observer behind."""
        target = find_module(pl_module, self.module)[1]
        if hasattr(target, BANK):
            bank_of(target).observing = False

    def _bank(self, pl_module: L.LightningModule) -> ActivationRanges:
        return bank_of(find_module(pl_module, self.module)[1])
