"""Deep copies of modules, whatever tensors, hooks and parametrizations they hold."""

import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from lighten.errors import UserError, one_line

HOOKS = "_hooks"
"""How the names of the attributes end in which a module keeps its hooks."""
LIBRARIES = ("torch", "lightning", "builtins")
"""Packages whose objects are not looked into."""


def clone(model: nn.Module, *, share_weights: bool = False) -> nn.Module:
    """Return a deep copy without gradients and without the trainer that a Lightning module may hold.

    Tensors that belong to a graph of gradients, such as activations that a forward has kept, are copied without it.
    What cannot be copied, such as a lock or an open file, is shared. Functions that a module keeps, as hooks or
    attributes, speak of the copies where they spoke of parts of ``model``.

    Args:
        model: any module.
        share_weights: let parameters of the copy lie where those of ``model`` do, until they are given other data;
            buffers are copied all the same. Who writes into such a parameter writes into both.

    Raises:
        UserError: if something in ``model`` cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.kept = layer(torch.ones(1, 2))  # copy.deepcopy(layer) fails from now on
        >>> clone(layer).kept.requires_grad
        False
    """
    trainers = [module.__dict__.get("_trainer") for module in model.modules()]
    given: dict[int, Any] = {id(trainer): trainer for trainer in trainers if trainer is not None}
    if share_weights:
        given |= {id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters() if type(p) is nn.Parameter}
    memo = given | _empty_copies(model)
    try:
        with _WithoutGraph():
            try:
                copied = copy.deepcopy(model, memo)
            except Exception:
                memo = given | _empty_copies(model)
                _share_the_rest(model, memo)
                copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be copied ({one_line(error, 200)}); give a model that copy.deepcopy takes"
        ) from error
    for module in copied.modules():
        if module.__dict__.get("_trainer") is not None:
            module.__dict__["_trainer"] = None
        _rebind(module, memo)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _empty_copies(model: nn.Module) -> dict[int, Any]:
    """Return a new container for each empty one that a module holds: of those, most of a deep copy's time is made."""
    held = (value for module in model.modules() for value in module.__dict__.values())
    return {id(value): type(value)() for value in held if type(value) in (dict, OrderedDict, set, list) and not value}


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


def hooked_weights(module: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return the weights that hooks of PyTorch compute before each forward, by name: what computes each."""
    found: dict[str, Callable[[], Tensor]] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            found[hook._tensor_name] = partial(hook.apply_mask, module)
        elif isinstance(hook, WeightNorm):
            found[hook.name] = partial(hook.compute_weight, module)
        elif isinstance(hook, SpectralNorm):
            found[hook.name] = partial(hook.compute_weight, module, do_power_iteration=False)
    return found


class _WithoutGraph(TorchFunctionMode):
    """While active, deep copies of tensors with a history are detached ones; torch copies only leaves itself."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone(memory_format=torch.preserve_format))
        return func(*args, **(kwargs or {}))


def _held(model: nn.Module) -> Iterator[Any]:
    """Yield what modules hold besides modules: the contents of a container before the container."""
    seen: set[int] = set()

    def walk(value: Any) -> Iterator[Any]:
        if id(value) in seen or isinstance(value, nn.Module | type | types.ModuleType):
            return
        seen.add(id(value))
        if isinstance(value, dict):
            inside: Any = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            inside = value
        else:
            known = callable(value) or type(value).__module__.partition(".")[0] in LIBRARIES
            inside = () if known else getattr(value, "__dict__", {}).values()
        for item in list(inside):
            yield from walk(item)
        yield value

    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if name != "_trainer":
                yield from walk(value)


def _share_the_rest(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put into ``memo`` what cannot be copied, as its own copy."""
    modules: dict[int, Any] = {id(module): module for module in model.modules()}
    for value in _held(model):
        if isinstance(value, Tensor | dict | list | tuple | set | frozenset):
            continue
        try:
            copy.deepcopy(value, {**memo, **modules})
        except Exception:
            memo[id(value)] = value


def _rebind(module: nn.Module, memo: dict[int, Any]) -> None:
    for name, value in module.__dict__.items():
        if isinstance(value, types.FunctionType):
            module.__dict__[name] = _rebound(value, memo)
        elif name.endswith(HOOKS) and isinstance(value, dict):
            for key, hook in value.items():
                if isinstance(hook, types.FunctionType):
                    value[key] = _rebound(hook, memo)


def _rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """Return ``function`` with the copies of what it closes over."""
    cells = function.__closure__ or ()
    held = [_content(cell) for cell in cells]
    if not any(id(value) in memo for value in held):
        return function
    closure = tuple(
        types.CellType(memo[id(value)]) if id(value) in memo else cell for cell, value in zip(cells, held, strict=True)
    )
    bound = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
    bound.__defaults__, bound.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    bound.__dict__.update(function.__dict__)
    return bound


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
