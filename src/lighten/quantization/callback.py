"""Quantization-aware training as a callback: when fake-quantization begins and when its ranges freeze."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lighten.errors import UserError
from lighten.names import find_module
from lighten.quantization.insert import BANK, bank_of, quantize_, summary
from lighten.quantization.layers import FoldedNorm, QuantizedLayer
from lighten.quantization.sites import ActivationRanges, Stage
from lighten.training.example import example_call
from lighten.training.progress import fit_progress, fit_steps


class Quantize(L.Callback):
    """Train through int8, from a fraction of the fit on, in any LightningModule.

    Fake-quantizers are inserted, switched off, in ``setup``, before a strategy wraps the module. At ``begin`` batch
    norm is folded with its running statistics and one batch is observed; from the next one on weights and activations
    are fake-quantized. Activation ranges follow the data, over all ranks alike, until ``freeze``, and never in
    evaluation. Stage and ranges are part of the module's state dict: a checkpoint resumes, or is tested, as it was.

    Frozen statistics no longer tame large steps: SGD with momentum, at a rate that batch norm allowed, may diverge from
    ``begin`` on. Set the trainer's ``gradient_clip_val`` (1.0 serves); a warning says so.

    Logs ``quantize/enabled`` and ``quantize/frozen`` (0 or 1) with each batch.

    Args:
        begin: share of the fit's optimizer steps after which fake-quantization begins, in [0, 1).
        freeze: share after which ranges no longer move, from ``begin`` to 1.
        ranges: how ranges follow activations: ``"moving_average"``, ``"min_max"``, ``"percentile"``, ``"mse"`` (least
            squared error of a histogram), ``"entropy"``, or ``"lsq"`` (learned step size).
        weight_bits: 2 to 8.
        exclude: names, patterns or types (``"Embedding"``) of layers that stay in floating point.
        module: which submodule; by default ``student`` where there is one, else all of it.

    Raises:
        UserError: on a setting out of range; in ``setup``, on names that match nothing or a model without layers to
            quantize; before the first step, on a fit too short for ``begin`` or ``sync_batchnorm``; during the fit, on
            activations that are not finite.

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
        self.settings: dict[str, Any] = {"ranges": ranges, "weight_bits": weight_bits, "exclude": list(exclude)}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Insert fake-quantizers, unless an earlier call of the trainer did."""
        target = find_module(pl_module, self.module)[1]
        if hasattr(target, BANK):
            return
        args, kwargs = example_call(trainer, pl_module, target)
        quantize_(target, example_input=kwargs if kwargs and not args else args, **self.settings)
        rank_zero_info(f"quantize: {summary(target)}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a fit in which quantization cannot begin; warn of steps that frozen statistics may not bear."""
        target = find_module(pl_module, self.module)[1]
        steps = fit_steps(trainer)
        if math.ceil(self.begin * steps) >= steps:
            raise UserError(f"quantize begin={self.begin}: leaves none of the fit's {steps} steps; begin earlier")
        modules = list(target.modules())
        if any(isinstance(m, QuantizedLayer) and m.norm is not None and m.norm not in modules for m in modules):
            raise UserError("quantize: sync_batchnorm has replaced the norms that are folded; leave it off")
        folds = any(isinstance(m, FoldedNorm) for m in modules)
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
        looks = batch_idx % bank.rule.every == 0 and progress < self.freeze
        bank.observing = bank.stage == Stage.OBSERVE or (bank.stage == Stage.ON and looks)

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

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where the fit stopped before quantization began."""
        if self._bank(pl_module).stage == Stage.OFF and not trainer.interrupted:
            rank_zero_warn(f"quantize: the fit stopped before begin={self.begin}; the model is still in floating point")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no observer behind."""
        target = find_module(pl_module, self.module)[1]
        if hasattr(target, BANK):
            bank_of(target).observing = False

    def _bank(self, pl_module: L.LightningModule) -> ActivationRanges:
        return bank_of(find_module(pl_module, self.module)[1])
