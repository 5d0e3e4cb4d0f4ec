"""Quantization callback: quantization-aware training in any LightningModule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lighten.errors import UserError
from lighten.quantization.activation_quantizers import QUANTIZERS, ActivationQuantizers, Stage, quantizers_of
from lighten.quantization.insert import quantize_
from lighten.quantization.install import follow_, refold_norms_, unquantize_
from lighten.quantization.layers import FoldedNorm, QuantizedLayer, is_estimating
from lighten.quantization.settings import RANGES, TRAINED_RANGES, QuantizeSettings, check_bits, check_times
from lighten.quantization.table import summary
from lighten.training.averages import averaged_copies
from lighten.training.example_inputs import find_part
from lighten.training.loading import before_loading
from lighten.training.progress import fell_short, fit_position, fit_progress, logs_now
from lighten.training.record import log_now
from lighten.utils.checks import check_one_of
from lighten.utils.compression import record_of


class Quantize(L.Callback):
    """Train any LightningModule through int8 from a given fraction of the fit on.

    Fake-quantizers are inserted in ``setup``, switched off, before a strategy wraps the module. At ``begin`` batch
    norm is folded with its running statistics and one batch is observed; from the next batch on, weights and
    activations are fake-quantized. Activation ranges follow the data until ``freeze``, the same on all ranks, and never
    change in evaluation. Stage and ranges are part of the module's state dict, so a checkpoint restores them. With
    gradient accumulation, ranges change once for each optimizer step, by all of its batches. Weights may be sharded by
    FSDP2 (``ModelParallelStrategy``), if a layer and its norm are sharded together; ``sync_batchnorm`` may be on.

    With frozen statistics, batch norm no longer damps large steps: SGD with momentum, at a learning rate that worked
    before, may diverge from ``begin`` on. Set the trainer's ``gradient_clip_val`` (1.0 works); a warning says so.

    Logs ``quantize/enabled`` and ``quantize/frozen`` (0 or 1) at each log point; when it begins and at each epoch's end
    also ``quantize/low/<location>`` and ``quantize/high/<location>``, the range of each activation.

    Args:
        begin: share of the fit's optimizer steps after which fake-quantization begins, in [0, 1).
        freeze: share after which ranges no longer change, from ``begin`` to 1.
        ranges: how ranges follow activations: ``"moving_average"``, ``"min_max"``, ``"percentile"``, ``"mse"`` (least
            squared error of a histogram), ``"entropy"``, or ``"lsq"`` (learned step size).
        weight_bits: 2 to 8.
        exclude: names, patterns or types (``"Embedding"``) of layers that stay in floating point.
        module: which submodule; by default ``student`` if there is one, otherwise the whole module.

    Raises:
        UserError: for a setting out of range; in ``setup``, for names that match nothing, a model without layers to
            quantize, ``FSDPStrategy`` or DeepSpeed; before the first step, if the fit is too short for ``begin``, or a
            norm is sharded apart from its layer; during the fit, if activations are not finite; after it, if it
            stopped before ``begin``.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[Quantize(begin=0.5)])  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        begin: float = 0.7,
        freeze: float = QuantizeSettings.freeze,
        ranges: str = TRAINED_RANGES,
        weight_bits: int = QuantizeSettings.weight_bits,
        exclude: Sequence[str] = (),
        module: str | None = None,
    ) -> None:
        check_one_of("ranges", ranges, RANGES)
        check_bits(weight_bits)
        check_times(begin, freeze)
        self.begin, self.freeze, self.module = begin, freeze, module
        self._part = ""
        self._unfinished: str | None = None
        self.settings: dict[str, Any] = {"ranges": ranges, "weight_bits": weight_bits, "exclude": list(exclude)}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Insert fake-quantizers, unless an earlier call of the trainer did."""
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise UserError(
                f"Quantize needs a layer's whole weight in its forward, {type(trainer.strategy).__name__} keeps flat "
                "pieces of several; use ddp or ModelParallelStrategy (FSDP2)"
            )
        quantized = [name for name, module in pl_module.named_modules() if hasattr(module, QUANTIZERS)]
        inserted = [name for name in quantized if self.module in (None, name)]
        if len(inserted) == 1:
            self._part = inserted[0]
            target = self._target(pl_module)
            if stage != "fit" or self._made(target):
                refold_norms_(target)
                return
            unquantize_(target)  # an earlier fit had other settings
        self._part, target, (args, kwargs) = find_part(trainer, pl_module, self.module)
        quantize_(target, example_input=kwargs if kwargs and not args else args, **self.settings)
        rank_zero_info(f"quantize: {summary(target)}")

    def _made(self, target: nn.Module) -> bool:
        """Return whether the fake-quantizers in ``target`` are those that these settings make."""
        found = record_of(target).quantization
        return all(found[key] == value for key, value in self.settings.items())

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fold the norms that ``sync_batchnorm`` has put in; refuse shards that part a layer from its norm."""
        target = self._target(pl_module)
        refold_norms_(target)
        _check_shards(target)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fold the norms that ``sync_batchnorm`` has left behind."""
        refold_norms_(self._target(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a fit in which quantization cannot begin; warn of steps that frozen statistics may not bear."""
        target = self._target(pl_module)
        self._share(trainer, pl_module)
        quantizers_of(target).held = True
        steps, begin = fit_position(trainer).total, self._begin(trainer)
        if math.isfinite(steps) and math.ceil(begin * steps) >= steps:
            raise UserError(f"quantize begin={begin}: leaves none of the fit's {steps} steps; begin earlier")
        folds = any(isinstance(m, FoldedNorm) for m in target.modules())
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
        quantizers, progress = self._bank(pl_module), fit_progress(trainer)
        if quantizers.stage == Stage.OFF and progress >= self._begin(trainer):
            quantizers.stage = Stage.OBSERVE
            _share_statistics(self._target(pl_module), trainer)
        step = batch_idx // trainer.accumulate_grad_batches
        looks = step % quantizers.rule.every == 0 and (progress < self.freeze or _estimates(self._target(pl_module)))
        quantizers.observing = quantizers.stage == Stage.OBSERVE or (quantizers.stage == Stage.ON and looks)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move the ranges, once an optimizer step; the first time, fake-quantization is on from here."""
        quantizers = self._bank(pl_module)
        frozen, before = quantizers.stage == Stage.ON and not quantizers.observing, quantizers.stage
        if quantizers.observing:
            if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                quantizers.update(f" at step {trainer.global_step - 1} (epoch {trainer.current_epoch})")
                quantizers.stage = Stage.ON
            quantizers.observing = False
        self._share(trainer, pl_module)
        enabled = quantizers.stage == Stage.ON
        if logs_now(trainer):
            pl_module.log_dict({"quantize/enabled": float(enabled), "quantize/frozen": float(frozen)})
        if enabled and (before != Stage.ON or trainer.is_last_batch):
            log_now(trainer, _ranges(quantizers))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the fit stopped before quantization began; warn of what it never reached."""
        quantizers = self._bank(pl_module)
        quantizers.held = False
        if quantizers.stage != Stage.ON and fell_short(trainer):
            done, total = fit_position(trainer)
            self._unfinished = (
                f"the fit stopped after {done} of {total} steps, before begin={self.begin} of Quantize: the model is "
                "still in floating point; let it run longer (EarlyStopping, max_time), or set begin earlier"
            )
        elif quantizers.stage == Stage.ON and quantizers.unknown():
            rank_zero_warn(
                f"quantize: no training step has reached {', '.join(quantizers.unknown())}; they stay in floating point"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell it, when all else of the fit is done and saved.

        Raises:
            UserError: if the fit stopped before quantization began.
        """
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            raise UserError(unfinished)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put ranges and stage also where another callback has put averaged weights that have none."""
        state = self._bank(pl_module).state_dict(prefix=".".join(filter(None, [self._part, f"{QUANTIZERS}."])))
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **state}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no observer behind."""
        target = self._target(pl_module)
        if hasattr(target, QUANTIZERS):
            quantizers_of(target).observing = quantizers_of(target).held = False

    def _share(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give stage and ranges to copies of the module that other callbacks keep: those average weights alone."""
        for averaged in averaged_copies(trainer, pl_module, self._part):
            follow_(averaged, self._target(pl_module))

    def _begin(self, trainer: L.Trainer) -> float:
        return 0.0 if trainer.fast_dev_run else self.begin  # type: ignore[attr-defined]

    def _target(self, pl_module: L.LightningModule) -> nn.Module:
        return pl_module.get_submodule(self._part)

    def _bank(self, pl_module: L.LightningModule) -> ActivationQuantizers:
        return quantizers_of(self._target(pl_module))


@before_loading
def refuse_float_network(module: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``state_dict``, without ranges that are not in use yet and that ``module`` has no place for.

    Raises:
        UserError: if it is of a network that computes through int8, and ``module`` does not.
    """
    suffix = f"{QUANTIZERS}.stage_code"
    for key in [key for key in state_dict if key.endswith(suffix)]:
        root = key.removesuffix(suffix).removesuffix(".")
        modules = dict(module.named_modules())
        if root not in modules or hasattr(modules[root], QUANTIZERS):
            continue
        if int(state_dict[key]) != Stage.OFF:
            raise UserError(
                f"the state dict is of a network that was trained through int8, and {type(module).__name__} has no "
                "fake-quantizers: its weights alone are another network; give the trainer Quantize too, with the "
                "settings of that fit, or call quantize_ on the module before loading"
            )
        ranges = key.removesuffix("stage_code")
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith(ranges)}
    return state_dict


def _ranges(quantizers: ActivationQuantizers) -> dict[str, float]:
    known = [i for i, parameters in enumerate(quantizers.parameters_of) if parameters is not None]
    ends = {"low": quantizers.low.tolist(), "high": quantizers.high.tolist()}
    return {f"quantize/{end}/{quantizers.names[i]}": values[i] for end, values in ends.items() for i in known}


def _estimates(model: nn.Module) -> bool:
    """Return whether somebody computes statistics of folded norms again: ranges then follow them."""
    return any(isinstance(m, FoldedNorm) and is_estimating(m) for m in model.modules())


def _check_shards(model: nn.Module) -> None:
    """Raise ``UserError`` where a layer's forward would find the norm that it folds in shards (FSDP2)."""
    from torch.distributed.fsdp import FSDPModule

    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    for name, layer in model.named_modules():
        norm = layer.quantizers.norm_name if isinstance(layer, QuantizedLayer) else None
        if units and norm is not None:
            around = [unit for unit in units if _is_within(norm, unit)]
            if around and not _is_within(name, max(around, key=len)):
                raise UserError(
                    f"quantize: {norm!r} is folded into {name!r}, and fully_shard has put it into a unit "
                    f"of its own, {max(around, key=len)!r}; shard what holds both"
                )


def _is_within(name: str, unit: str) -> bool:
    return not unit or f"{name}.".startswith(f"{unit}.")


def _share_statistics(model: nn.Module, trainer: L.Trainer) -> None:
    """Give all ranks the statistics of rank zero for the norms that are folded from here on; not all wrappers do."""
    if trainer.world_size == 1:
        return
    for norm in [m for m in model.modules() if isinstance(m, FoldedNorm)]:
        for statistic in norm.buffers():
            dist.broadcast(statistic, 0)
