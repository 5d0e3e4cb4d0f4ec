"""One run of a LightningModule's own step that leaves nothing behind."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.precision.utils import _DtypeContextManager
from lightning.fabric.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lighten.utils.inputs import map_tensors
from lighten.utils.preserve import preserved

STEPS = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
"""The step that runs a module's network, by what the Trainer was asked to do."""

_CONTEXTS = {"training_step": "train", "validation_step": "val", "test_step": "test", "predict_step": "predict"}


def step_of(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Return the name of the step that runs the network: the stage's, or ``watched_step`` where a module names one."""
    return getattr(pl_module, "watched_step", STEPS[str(trainer.state.fn.value)])  # type: ignore[union-attr]


@contextmanager
def unnoticed(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Let steps of ``pl_module`` run inside; module, Trainer, loggers and random numbers are as before afterwards.

    The module may log, ask for its optimizers and step them, go backward by hand and stop the fit: nothing comes of it.
    """
    holders = [vars(holder) for holder in (trainer, trainer.strategy, trainer.fit_loop)]
    before = [dict(holder) for holder in holders]
    learns = [(parameter, parameter.requires_grad) for parameter in pl_module.parameters()]
    try:
        with preserved(pl_module):
            trainer.loggers = [DummyLogger() for _ in trainer.loggers]
            for module in pl_module.modules():
                if isinstance(module, _DeviceDtypeModuleMixin):
                    module._device = device_of(pl_module)
            _intercept(trainer, pl_module)
            yield
    finally:
        for parameter, flag in learns:
            parameter.requires_grad_(flag)
        for holder, content in zip(holders, before, strict=True):
            holder.clear()
            holder.update(content)


def transferred(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> Any:
    """Return ``batch`` as the step gets it: all hooks of the transfer run, on the device where the module is now."""
    if (dtype := _true_dtype(trainer, pl_module)) is not None:
        batch = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, device_of(pl_module), dataloader_idx=0)


def run_step(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
    """Run the step on a ``batch`` that is on the device; inside :func:`unnoticed`."""
    name = step_of(trainer, pl_module)
    step = getattr(pl_module, name)
    given = list(inspect.signature(step).parameters)
    pl_module._current_fx_name = name
    with torch.set_grad_enabled(name == "training_step"), in_precision(trainer, pl_module):
        if given[0] == "dataloader_iter":
            step(iter([(batch, 0, 0)]))
        else:
            step(batch, *[0] * (min(len(given), 3) - 1))


def in_precision(trainer: L.Trainer, pl_module: L.LightningModule) -> AbstractContextManager[Any]:
    """Return the context in which the fit's steps run; where weights will be converted, one for how they are now."""
    if (dtype := _true_dtype(trainer, pl_module)) is not None:
        return _DtypeContextManager(dtype)
    context = _CONTEXTS[step_of(trainer, pl_module)]
    return getattr(trainer.precision_plugin, f"{context}_step_context")()


def build(trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
    """Let the module make its layers now, where ``setup`` or ``configure_model`` does that; return whether one did.

    Lightning calls both after the callbacks' ``setup``. What is called here is passed over there, so that it is called
    once, as always.
    """
    stage = trainer.state.fn.value  # type: ignore[union-attr]
    hooks = [n for n in ("setup", "configure_model") if is_overridden(n, pl_module) and n not in vars(pl_module)]
    for name in hooks:
        given = {"stage": stage} if name == "setup" else {}
        call._call_lightning_module_hook(trainer, name, **given)
        setattr(pl_module, name, _passed_over(pl_module, name))
    return bool(hooks)


def device_of(module: nn.Module) -> torch.device:
    """Return where the weights are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _passed_over(pl_module: L.LightningModule, name: str) -> Callable[..., None]:
    def nothing(stage: str | None = None) -> None:
        delattr(pl_module, name)

    return nothing


def _true_dtype(trainer: L.Trainer, module: nn.Module) -> torch.dtype | None:
    """Return the type of the weights now, where the fit converts weights and inputs to one type."""
    if not isinstance(trainer.precision_plugin, HalfPrecision | DoublePrecision):
        return None
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _intercept(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Stand in for what a step asks the Trainer to do."""

    def lent(method: Callable[..., Any]) -> Callable[..., Any]:
        def lend(*args: Any, **kwargs: Any) -> Any:
            if not trainer.strategy.optimizers:
                _make_optimizers(trainer, pl_module)
            return method(*args, **kwargs)

        return lend

    def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)

    stand_ins = {"optimizers": lent(pl_module.optimizers), "lr_schedulers": lent(pl_module.lr_schedulers)}
    stand_ins |= {"log": _nothing, "log_dict": _nothing, "manual_backward": backward}
    for name, stand_in in stand_ins.items():
        setattr(pl_module, name, stand_in)


def _make_optimizers(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Give the Trainer the module's optimizers and schedulers, none of which steps."""
    optimizers, schedules = _init_optimizers_and_lr_schedulers(pl_module)
    trainer.strategy.optimizers = optimizers
    trainer.strategy.lr_scheduler_configs = schedules
    stepping: list[Any] = [*optimizers, *trainer.strategy._lightning_optimizers]
    for each in stepping:
        each.step = _closure_alone
    for schedule in schedules:
        schedule.scheduler.step = _nothing  # type: ignore[method-assign]


def _closure_alone(closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
    return None if closure is None else closure()


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
