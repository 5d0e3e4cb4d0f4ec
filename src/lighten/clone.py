"""Copies of modules, whatever tensors a forward, a hook or a parametrization has left in them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from lighten.errors import UserError, one_line


def clone(model: nn.Module) -> nn.Module:
    """Return a deep copy without gradients and without the trainer that a Lightning module may hold.

    Tensors that belong to a graph of gradients, such as activations that a forward has kept, are copied without it.

    Raises:
        UserError: if something in ``model`` cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.kept = layer(torch.ones(1, 2))  # copy.deepcopy(layer) fails from now on
        >>> clone(layer).kept.requires_grad
        False
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        trainer = module.__dict__.get("_trainer")
        if trainer is not None:
            memo[id(trainer)] = trainer
    try:
        with _WithoutGraph():
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be copied ({one_line(error, 200)}); give a model that copy.deepcopy takes"
        ) from error
    for module in copied.modules():
        if module.__dict__.get("_trainer") is not None:
            module.__dict__["_trainer"] = None
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def fix_weights_(model: nn.Module) -> None:
    """Replace weights that are computed in each forward by what they are now, in place.

    Those are masked by ``torch.nn.utils.prune``, normalised by weight or spectral norm, or parametrized.
    """
    for module in list(model.modules()):
        layer: Any = module
        if parametrize.is_parametrized(layer):
            kind = type(layer)  # copies share it, and removal takes the weight's property off it
            layer.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
            for name in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)


class _WithoutGraph(TorchFunctionMode):
    """While active, deep copies of tensors with a history are detached ones; torch copies only leaves itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone(memory_format=torch.preserve_format))
        return func(*args, **(kwargs or {}))
