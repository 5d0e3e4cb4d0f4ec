"""Averaged weights of other callbacks: swapped in for validation and checkpoints."""

from collections.abc import Iterator
from typing import Any

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged_copies(trainer: L.Trainer, pl_module: L.LightningModule, name: str = "") -> Iterator[nn.Module]:
    """Yield what other callbacks hold as a copy of ``pl_module`` or of its part ``name``.

    Such are the models of Lightning's ``WeightAveraging`` and ``StochasticWeightAveraging``, and those of a callback of
    somebody's own that keeps an ``AveragedModel`` or a deep copy as an attribute.

    Args:
        trainer: whose callbacks are asked.
        pl_module: the module that is trained.
        name: of the part that is wanted; of a copy of the whole module, that part is yielded.
    """
    part = pl_module.get_submodule(name)
    for callback in getattr(trainer, "callbacks", []):
        for value in vars(callback).values():
            held: Any = value.module if isinstance(value, AveragedModel) else value
            if not isinstance(held, nn.Module) or held is pl_module or held is part:
                continue
            if _are_alike(held, pl_module):
                yield held.get_submodule(name)
            elif _are_alike(held, part):
                yield held


def _are_alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules are of one class, of which one may have been given a subclass in the meantime."""
    return isinstance(one, type(other)) or isinstance(other, type(one))
