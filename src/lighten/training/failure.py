"""``failure.json``: why a run ended early."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lighten.errors import UserError, one_line
from lighten.training.rank import is_rank_zero
from lighten.utils.files import replace_file

FILE = "failure.json"


@contextmanager
def failure_kept(folder: Path) -> Iterator[None]:
    """Write what the block fails with into ``folder``; rank zero only. A signal that asks to stop is no failure."""
    path = folder / FILE
    if is_rank_zero():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if is_rank_zero():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            text = json.dumps({"schema": 1, "error": error_line(error), "at": now})
            with suppress(OSError):  # the same disk may be what it failed of
                replace_file(path, lambda file: file.write(text.encode()))
        raise


def error_line(error: BaseException) -> str:
    """Return an error in one line; of one that is not meant for users also its kind, and the line of code."""
    if isinstance(error, UserError):
        return one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(error)}".rstrip(": ") + where
