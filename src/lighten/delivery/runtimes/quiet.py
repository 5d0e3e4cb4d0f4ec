"""Context managers that silence exporters and runtimes."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and the exporter's notes on packages that are not needed; logging is left as it was found."""
    state = {logger: (logger.level, logger.propagate, list(logger.handlers)) for logger in _loggers()}
    try:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (level, propagate, handlers) in state.items():
            logger.setLevel(level)
            logger.propagate, logger.handlers[:] = propagate, handlers


@contextmanager
def silent() -> Iterator[None]:
    """Be ``quiet``, and drop what is written to standard output and error, also by compiled code."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for target, stream in enumerate(kept, start=1):
            os.dup2(stream, target)
            os.close(stream)
        os.close(nowhere)


def _loggers() -> list[logging.Logger]:
    named = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]
