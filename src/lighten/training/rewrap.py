"""A new wrapper for distributed training, for a module whose parameters have changed their shapes."""

import gc
from collections.abc import Callable
from typing import Any, cast

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.nn.parallel import DistributedDataParallel

from lighten.errors import UserError


def prepare_rewrap(trainer: L.Trainer, after_saving: Callable[..., None]) -> None:
    """Check that a strategy's wrapper can be made again during the fit, and complete the states that it hands out.

    Those go into checkpoints, of weights alone too, and from spawned processes to the one that has spawned them. The
    module's own ``state_dict()`` stays as it is: people average what it holds.

    Args:
        trainer: of the fit.
        after_saving: called with the module and such a state, which it may add to.

    Raises:
        UserError: if its communication hook keeps something of each gradient.
    """
    state = getattr(trainer.strategy, "_ddp_comm_state", None)
    if type(state).__name__ == "PowerSGDState":
        raise UserError(
            "live=True: the communication hook of PowerSGD keeps errors of gradients, whose shapes change at a cut; "
            "use another ddp_comm_hook, or live=False"
        )
    strategy: Any = trainer.strategy
    if "lightning_module_state_dict" not in vars(strategy):  # what is not wrapped yet by an earlier fit
        state_of = strategy.lightning_module_state_dict

        def completed() -> dict[str, Any]:
            state: dict[str, Any] = state_of()
            after_saving(strategy.lightning_module, state)
            return state

        strategy.lightning_module_state_dict = completed
    if isinstance(strategy.launcher, _MultiProcessingLauncher):  # takes the module's own
        trainer.lightning_module.register_state_dict_post_hook(after_saving)


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
