"""Calls to ``torch.onnx.export`` that share its table of operators, which takes over half of a small export's time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from importlib import import_module
from typing import Any

import torch

READER = "from_torchlib"
"""The class method of torch's table that reads the source of some hundred operators, at each export again."""


def onnx_program(model: Any, args: tuple[Any, ...] = (), **settings: Any) -> torch.onnx.ONNXProgram:
    """Return ``torch.onnx.export(model, args, **settings)``, traced by ``torch.export``, as a program in memory."""
    with _table_read_once():
        program = torch.onnx.export(model, args, dynamo=True, verbose=False, **settings)
    assert program is not None
    return program


@contextmanager
def _table_read_once() -> Iterator[None]:
    """Let torch read its table once a process; a version of torch that reads it elsewhere is left as it is."""
    try:
        table: Any = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        read = table.__dict__[READER]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(table, READER, _copies(getattr(table, READER)))
    try:
        yield
    finally:
        setattr(table, READER, read)


@cache
def _copies(read: Callable[..., Any]) -> Any:
    """Return ``read`` whose results are kept, and copied, as an export adds operators to its own.

    A table leaves out operators that torch does not know yet, so it holds as long as no others are defined.
    """
    kept = cache(lambda _, **given: read(**given))

    def copied(**given: Any) -> Any:
        table = copy(kept(frozenset(torch._C._dispatch_get_all_op_names()), **given))
        table.functions = {name: list(found) for name, found in table.functions.items()}
        return table

    return staticmethod(copied)
