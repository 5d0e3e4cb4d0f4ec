"""JSON on standard output, and nothing else there."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


def print_json(value: Any) -> None:
    """Print plain values as indented JSON; numbers that are not finite raise ``ValueError``."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


@contextmanager
def stdout_aside(aside: bool = True) -> Iterator[None]:
    """Send what this block writes to standard output to standard error, also what compiled code writes.

    Args:
        aside: ``False`` does nothing.
    """
    if not aside:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
