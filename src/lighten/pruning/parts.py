"""Parts of a model: the one at which tracing fails, and one that can be traced."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten.errors import UserError
from lighten.utils.inputs import Call
from lighten.utils.preserve import preserved, random_state_kept

PACKAGE = str(Path(__file__).parent)


class NotTracedError(UserError):
    """A forward that cannot be followed; a part of it may."""


def traceable_part(model: nn.Module, call: Call, traces: Callable[[nn.Module, Call], bool]) -> str | None:
    """Return the name of a part that can be traced with what the forward gives it; the largest, the nearest first.

    Args:
        model: a copy of one that cannot be traced.
        call: to run it with.
        traces: says whether a part can be, given what it is called with.
    """
    given = _given(model, call)
    level = {name: part for name, part in model.named_children() if name in given}
    while level:
        for name in sorted(level, key=lambda name: -_size(level[name])):
            if traces(level[name], given[name]):
                return name
        level = {
            f"{name}.{inner}": part
            for name, outer in level.items()
            for inner, part in outer.named_children()
            if f"{name}.{inner}" in given
        }
    return None


def _given(model: nn.Module, call: Call) -> dict[str, Call]:
    """Return what each part is called with first."""
    found: dict[str, Call] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(name, (args, kwargs))

    hooks = [
        part.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, part in model.named_modules()
        if name and not isinstance(part, torch.jit.ScriptModule)  # takes no hook
    ]
    with suppress(Exception), torch.no_grad(), random_state_kept(model), preserved(model):
        model.eval()(*call[0], **call[1])
    for hook in hooks:
        hook.remove()
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def source_of(error: BaseException) -> str:
    """Return ``model.py:12``, the innermost line outside PyTorch and this package at which an error arose."""
    library = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((library, PACKAGE))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def failing_part(model: nn.Module, error: BaseException) -> str:
    """Return name and kind of the innermost module in whose forward an error arose, and the line."""
    names = {id(module): name for name, module in model.named_modules()}
    part, trace = type(model).__name__, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            part = f"{names[id(owner)]} ({type(owner).__name__})"
        trace = trace.tb_next
    source = source_of(error)
    return f"{part} at {source}" if source else part
