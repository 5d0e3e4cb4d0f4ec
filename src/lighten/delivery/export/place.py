"""Places in a forward's code: where it raises, and where a trace of it takes a size for a constant."""

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LIBRARIES = tuple(str(Path(__file__).parents[2]) if own else str(Path(torch.__file__).parent) for own in (True, False))
"""Folders of code that nobody is sent to: our own and torch's."""

_FIXED = re.compile(r"eval (?:Eq|Ne|Gt|Ge|Lt|Le|Mod)\(.*\[guard added\] \((?P<file>[^:)]+):(?P<line>\d+) in \w+\)")


def place_of(error: BaseException | None) -> str:
    """Return ``", net.py line 12"`` of the last line of a model's own code that an error went through, or nothing."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))]
    return f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""


@contextmanager
def fixed_sizes() -> Iterator[list[str]]:
    """Note, while a forward is traced, the lines of its code that take a size for a constant, as ``place_of`` does."""
    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            match = _FIXED.search(record.getMessage())
            if match and not match["file"].startswith("_"):
                found.append(f", {Path(match['file']).name} line {match['line']}")

    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    try:
        log.setLevel(logging.INFO)
        log.propagate, log.handlers[:] = False, [Notes()]
        yield found
    finally:
        log.setLevel(level)
        log.propagate, log.handlers[:] = propagate, handlers
