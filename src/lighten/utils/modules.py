"""Modules and layers by name; training and eval modes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lighten.errors import UserError, did_you_mean

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule")


def refuse_unfit(model: nn.Module) -> None:
    """Raise where a wrapper already holds references to the parameters, or these have no shape yet.

    Raises:
        UserError: naming the wrapper, the TorchScript module or the first parameter without a shape.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("the model is a TorchScript module; give the module that it was made of")
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise UserError(f"{lazy} has no shape yet: run the model once on an example input, then give it")
    for module in model.modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        if kinds:
            raise UserError(f"the model is wrapped in {kinds[0]}; give the module inside, before it is wrapped")


def find_module(root: nn.Module, name: str | None) -> tuple[str, nn.Module]:
    """Return the name and module that a callback works on.

    Args:
        root: usually a LightningModule.
        name: a dotted submodule name; ``None`` takes ``student`` where there is one, else all of ``root``.

    Raises:
        UserError: if ``root`` has no such submodule; the nearest name is given.
    """
    if name is None:
        student = getattr(root, "student", None)
        return ("student", student) if isinstance(student, nn.Module) else ("", root)
    modules = dict(root.named_modules())
    if name not in modules:
        depth = name.count(".")
        near = [n for n in modules if n and n.count(".") <= depth]
        raise UserError(f"module={name!r}: {type(root).__name__} has no such submodule; {did_you_mean(name, near)}")
    return name, modules[name]


def match_names(patterns: Sequence[str], names: Iterable[str], *, key: str = "exclude") -> set[str]:
    """Return the names that any pattern matches: a shell pattern, or a dotted prefix.

    ``"layer1"`` matches ``layer1`` and everything under it, ``"*.shortcut"`` whatever ends so.

    Raises:
        UserError: if a pattern matches nothing.
    """
    names = [n for n in names if n]
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")]
        if not hits:
            raise UserError(f"{key}={pattern!r} matches no layer; {did_you_mean(pattern, names)}")
        found.update(hits)
    return found


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Give all modules their training or eval mode back afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def weights_of(layer: nn.Module) -> list[nn.Parameter]:
    """Return the weight of a layer, or the parameters that it is computed from."""
    weight = layer._parameters.get("weight")
    return [*layer.parameters()] if weight is None else [weight]
