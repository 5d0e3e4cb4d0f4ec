"""A new wrapper for distributed training, for a module whose parameters have changed their shapes."""

import gc
from collections.abc import Callable
from typing import Any, cast

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.nn.parallel import DistributedDataParallel

from lighten.errors import UserError


def prepare_rewrap(trainer: L.Trainer, pl_module: L.LightningModule, after_saving: Callable[..., None]) -> None:
    """Check that a strategy's wrapper can be made again during the fit.

    Args:
        trainer: of the fit.
        pl_module: the module that trains.
        after_saving: called with the state that spawned processes hand to the one that has spawned them.

    Raises:
        UserError: if its communication hook keeps something of each gradient.
    """
    state = getattr(trainer.strategy, "_ddp_comm_state", None)
    if type(state).__name__ == "PowerSGDState":
        raise UserError(
            "live=True: the communication hook of PowerSGD keeps errors of gradients, whose shapes change at a cut; "
            "use another ddp_comm_hook, or live=False"
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        pl_module.register_state_dict_post_hook(after_saving)


def rewrap_(trainer: L.Trainer) -> None:
    """Wrap the module that trains anew where a strategy has wrapped it: buckets and hooks follow the new shapes.

    The old wrapper, with its buckets, is let go before the new one is made.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        return
    module = cast(Any, strategy.model).module
    strategy.model = module
    gc.collect()
    strategy.configure_ddp()
