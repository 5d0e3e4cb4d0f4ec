"""Callbacks for losses and gradients that are not finite."""

import warnings
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lighten.errors import UserError
from lighten.training.settings import ON_BAD_BATCH
from lighten.utils.checks import check_one_of

MAX_IN_A_ROW = 10
"""Steps of one optimizer that may be passed over without a good one in between: more are no accident."""

LEAST_SCALE = 1.0
"""A loss scaler that is below it has halved its scale 16 times, and gradients still overflow."""

_Bad = tuple[str, str]
"""What is not finite, and where that comes from."""

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class StopOnNonFinite(Callback):
    """Stops the fit before a loss or gradient that is NaN or infinite changes the weights, and lets none be saved.

    Looks at the loss of each batch, and before each optimizer step at the norm of all gradients, unscaled and not
    clipped yet; all ranks agree, so they stop in the same step and tell the same. A module that has
    ``describe_non_finite()`` is asked where a bad loss comes from. Where float16 has a loss scaler, an overflow is left
    to that as long as it has a smaller scale to try. Weights are looked at before each save.

    Args:
        on_bad_batch: ``stop``, or ``skip``: all ranks pass over such a step, which then changes neither weights nor
            optimizer, running statistics nor ranges, count it as ``train/skipped``, and tell the number at the end.

    Raises:
        UserError: with the step, where it comes from and what to do; when skipping, after ten in a row.
    """

    def __init__(self, on_bad_batch: str = "stop") -> None:
        check_one_of("on_bad_batch", on_bad_batch, ON_BAD_BATCH)
        self.skips = on_bad_batch == "skip"
        self.skipped = 0
        self._in_a_row: dict[int, int] = {}
        self._first = ""
        self._bad_loss: _Bad | None = None
        self._before: list[tuple[Tensor, Tensor]] = []
        self._stopped: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        if stage == "fit":
            self.skipped, self._first, self._in_a_row = 0, "", {}
        self._stopped = self._bad_loss = None
        self._before = []

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were passed over."""
        return {"skipped": self.skipped, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._first = int(state_dict["skipped"]), str(state_dict["first"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember running statistics, which a bad batch spoils in the forward pass."""
        if self.skips and not self._before:
            running = [b for n, b in pl_module.named_buffers() if n.rpartition(".")[2] in _RUNNING]
            self._before = [(buffer, buffer.detach().clone()) for buffer in running]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at this rank's loss."""
        if self._bad_loss is None and not bool(torch.isfinite(loss.detach()).all()):
            describe = getattr(pl_module, "describe_non_finite", None)
            source = (describe() if describe is not None else None) or ""
            self._bad_loss = (f"the loss is {float(loss.detach().mean())}", source)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Agree on losses and gradients; stop, or take the gradients away so that the step does nothing."""
        bad, self._bad_loss = self._bad_loss, None
        if bad is None and (found := _bad_gradient(pl_module, optimizer)) and not _left_to_scaler(trainer):
            bad = found
        if trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            self._in_a_row[id(optimizer)], self._before = 0, []
            return
        what, source = _of_all_ranks(bad, trainer)
        where = f"{what} at step {trainer.global_step} (epoch {trainer.current_epoch}){source}"
        in_a_row = self._in_a_row[id(optimizer)] = self._in_a_row.get(id(optimizer), 0) + 1
        if not self.skips:
            self._stop(trainer, f"{where}; lower optimizer.lr, set trainer.gradient_clip_val, or look for such values "
                       "in the data")  # fmt: skip
        if in_a_row > MAX_IN_A_ROW:
            self._stop(trainer, f"{where}, and in the {MAX_IN_A_ROW} steps before, which were skipped; lower "
                       "optimizer.lr, or look for such values in the data")  # fmt: skip
        self._skip(pl_module, optimizer, where)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how many steps were passed over."""
        if self.skips:
            pl_module.log("train/skipped", float(self.skipped))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell it."""
        if self.skipped and trainer.is_global_zero:
            warnings.warn(
                f"{self.skipped} of {trainer.global_step} steps were skipped, as they were not finite; the first: "
                f"{self._first}",
                stacklevel=2,
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

    def _skip(self, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer, where: str) -> None:
        self.skipped += 1
        self._first = self._first or where
        for parameter in _parameters(optimizer):
            parameter.grad = None  # optimizers leave alone what has none: no decay, no momentum
        with torch.no_grad():
            for buffer, before in self._before:
                buffer.copy_(before)
        self._before = []
        for module in pl_module.modules():
            if hasattr(module, "forget_batch"):  # observers of activations
                cast(Any, module).forget_batch()

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


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _bad_gradient(module: nn.Module, optimizer: torch.optim.Optimizer) -> _Bad | None:
    """Return which gradient of those that this process holds is not finite, or ``None``."""
    held = [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
    local = [(p, _values(g)) for p, g in held]
    if not local or bool(torch.isfinite(nn.utils.get_total_norm([g for _, g in local]))):
        return None
    names = {id(p): name for name, p in module.named_parameters()}
    for p, gradient in local:
        if not bool(torch.isfinite(gradient).all()):
            kind = "nan" if bool(gradient.isnan().any()) else "inf"
            return f"the gradient of {names.get(id(p), 'a parameter')} is {kind}", ""
    return None  # their squares alone overflow


def _values(gradient: Tensor) -> Tensor:
    """Return the numbers of a gradient that this process holds; of a sparse one, those that are there."""
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _left_to_scaler(trainer: L.Trainer) -> bool:
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE


def _of_all_ranks(bad: _Bad | None, trainer: L.Trainer) -> _Bad:
    """Return what is bad and where it comes from, as the first rank that knows tells it, on all of them."""
    if trainer.world_size == 1:
        assert bad is not None
        return bad
    found: list[_Bad | None] = [None] * trainer.world_size
    dist.all_gather_object(found, bad)
    known = [(rank, each) for rank, each in enumerate(found) if each is not None]
    # a loss comes first: one rank's gives all ranks bad gradients
    rank, (what, source) = min(known, key=lambda each: (not each[1][0].startswith("the loss"), each[0]))
    alike = len(known) == len(found) and all(each[0] == what for _, each in known)
    return (what, source) if alike else (f"{what} on rank {rank}", source)
