"""Modules that compute numbers from sizes alone, such as sines of positions: what they put out is narrowed by a cut.

No weight says how many channels such numbers have, and their values depend on how many there were: so the module goes
on to compute all of them, and those of channels that are gone are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.traceback import annotate
from torch.utils._pytree import tree_leaves

KEY = "lighten_output"
"""Key of a node's custom metadata: the name of the module whose output it is."""


@contextmanager
def outputs_marked(model: nn.Module) -> Iterator[None]:
    """Mark, in a graph that is traced inside, what modules without weights put out that are given no activations."""
    hooks = [
        module.register_forward_hook(_marking(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name and not any(True for _ in module.parameters())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _marking(name: str) -> Any:
    def mark(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = any(isinstance(value, Tensor) and value.is_floating_point() for value in tree_leaves((args, kwargs)))
        if given or not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        with annotate({KEY: name}):
            return torch.ops.aten.alias.default(output)

    return mark


def put_out_by(node: Node) -> str | None:
    """Return the name of the module whose marked output ``node`` is."""
    return (node.meta.get("custom") or {}).get(KEY)


class _Narrowed(nn.Module):
    """Mixed into a module's class once channels are cut that it computes: those of ``left_of_output`` are put out.

    ``left_of_output`` are a dimension and the positions in it that stay; an array, which no module looks upon as state.
    """

    left_of_output: tuple[int, np.ndarray]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        dim, left = self.left_of_output
        return output.index_select(dim, torch.tensor(left.tolist(), device=output.device))

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        return (_unpickled, (cast(Any, self).plain,), *made[2:])


def narrow_output_(module: nn.Module, dim: int, kept: Tensor) -> None:
    """Let ``module`` put out the positions ``kept`` along ``dim`` alone, of those that it puts out now."""
    narrowed: Any = module
    places = kept.cpu().numpy()
    if isinstance(module, _Narrowed):
        places = narrowed.left_of_output[1][places]
    else:
        module.__class__ = _narrowed_class(type(module))
    narrowed.left_of_output = dim, places


MADE: dict[Any, Any] = {}
"""The narrowed subclasses, by what they were made of."""


def _narrowed_class(kind: Any) -> Any:
    if kind not in MADE:
        members = {"__doc__": kind.__doc__, "__module__": kind.__module__, "plain": kind}
        MADE[kind] = type(kind.__name__, (_Narrowed, kind), members)
    return MADE[kind]


def _unpickled(kind: type[nn.Module]) -> nn.Module:
    made = _narrowed_class(kind)
    return cast(nn.Module, made.__new__(made))
