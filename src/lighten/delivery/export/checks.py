"""What a forward's code asks of its own tensors, and a file need not: their length, and whether their values fit."""

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

LIBRARIES = ("torch", "builtins")
"""Packages whose code is left as it is."""
CHECKS = (
    "aten::_assert_async", "aten::_assert_scalar", "aten::_assert_tensor_metadata", "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
)  # fmt: skip


@contextmanager
def open_lengths(model: nn.Module) -> Iterator[None]:
    """Let ``len(tensor)``, in the files that the modules of ``model`` come from, leave an open dimension open.

    Python makes a plain number of a length, so that a trace would take it for a constant; a shape says the same.
    """
    names = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    files = [
        vars(sys.modules[name])
        for name in sorted(names)
        if name in sys.modules and name.partition(".")[0] not in LIBRARIES and "len" not in vars(sys.modules[name])
    ]
    for names_of_file in files:
        names_of_file["len"] = _length
    try:
        yield
    finally:
        for names_of_file in files:
            del names_of_file["len"]


def _length(of: Any) -> Any:
    return of.shape[0] if isinstance(of, Tensor) and of.ndim else builtins.len(of)


def drop_checks_(graph: fx.Graph) -> None:
    """Remove what stops a forward on values that do not fit, and gives no output: runtimes have no such operators."""
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        check = node.op == "call_function" and (
            node.target is torch._check or (schema is not None and schema.name in CHECKS)
        )
        idle = node.op == "call_function" and not node.users and not node.is_impure()
        if (check or idle) and not node.users:
            graph.erase_node(node)
