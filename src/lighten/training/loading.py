"""State dicts prepared before a LightningModule loads them."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from torch import nn

Prepare = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Any]]
"""Takes a module and a state dict for it, may change the module, and returns the state dict to load.

Raises ``UserError`` where the module would not become the network that was saved.
"""

_PREPARATIONS: list[Prepare] = []


def before_loading(prepare: Prepare) -> Prepare:
    """Have ``prepare`` called before any LightningModule of this process loads a state dict; a decorator.

    ``load_from_checkpoint``, a trainer's ``ckpt_path`` and ``load_state_dict``, strict or not, all come by here. A
    network that is more than its weights (fake-quantized, or with norms that leave channels out) would otherwise be
    read as the plain network that its class makes, which computes something else.
    """
    if not _PREPARATIONS:
        L.LightningModule.load_state_dict = _load_state_dict  # type: ignore[method-assign, assignment]
    _PREPARATIONS.append(prepare)
    return prepare


def _load_state_dict(
    self: L.LightningModule, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    for prepare in _PREPARATIONS:
        state_dict = prepare(self, state_dict)
    return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)
