"""A new wrapper for distributed training, for a module whose parameters have changed their shapes."""

import gc
from typing import Any, cast

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lighten.errors import UserError


def check_rewrap(trainer: L.Trainer) -> None:
    """Check that a strategy's wrapper can be made again during the fit.

    Raises:
        UserError: if its communication hook keeps something of each gradient.
    """
    state = getattr(trainer.strategy, "_ddp_comm_state", None)
    if type(state).__name__ == "PowerSGDState":
        raise UserError(
            "live=True: the communication hook of PowerSGD keeps errors of gradients, whose shapes change at a cut; "
            "use another ddp_comm_hook, or live=False"
        )


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
