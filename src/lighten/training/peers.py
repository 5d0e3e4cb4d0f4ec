"""Ends all ranks of a fit when one fails, and reports the cause last."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from torch.distributed.constants import default_pg_timeout

from lighten.errors import UserError, one_line
from lighten.training import guard
from lighten.training.signals import Preempted
from lighten.utils.files import PREFIX, SUFFIX

LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|process group|peer", re.I)
"""What torch says of a group of processes that has broken, whichever way."""

WAIT = 4.0
"""Seconds that whoever has lost another rank waits for what became of that."""

OLD = 3600.0
"""Seconds after which nobody needs a cause any more that was left outside of its run folder."""

_guard: "subprocess.Popen[bytes] | None" = None
_cause: Path | None = None
_known: str | None = None


class RankMonitor(Callback):
    """Ends all ranks of a fit once one has failed, was killed, or was stopped; does nothing where there is one.

    Each rank gets a process beside it, see :mod:`lighten.training.guard`, until :func:`detach`. What the group of
    processes itself notices (a closed connection, its own timeout) is reported as what became of the other rank. A rank
    may be stopped as long as the strategy's timeout. List it first.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to watch."""
        watch(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let the others know."""
        if not isinstance(exception, Preempted):
            cause_of(exception, trainer.global_rank)


def watch(trainer: L.Trainer) -> None:
    """Begin to watch the ranks that a trainer has brought together; they agree on the file that tells why they end."""
    if trainer.world_size == 1 or os.name != "posix":
        return
    mark = trainer.strategy.broadcast(f"{os.getpid()}-{time.time_ns()}")
    timeout = getattr(trainer.strategy, "_timeout", None) or default_pg_timeout
    cause = Path(trainer.default_root_dir) / f"{PREFIX}cause-{mark}{SUFFIX}"
    started = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
    launcher = os.getppid() if started and trainer.local_rank > 0 else 0
    _watch(cause, trainer.global_rank, timeout.total_seconds(), launcher)


def cause_of(error: BaseException, rank: int | None = None) -> str | None:
    """Return why a fit of several processes ends, if ``error`` is but another rank's end; ``None`` if it is a cause.

    A cause is left for the others.
    """
    global _known
    if _guard is None or _cause is None:
        if isinstance(error, dist.DistError) or (dist.is_initialized() and _is_lost(error)):
            return f"the fit's processes did not come together ({one_line(error, 200)}); see what the others say"
        return None
    _send("failed")
    if _known is None and _is_lost(error):
        end = time.monotonic() + WAIT
        while (known := guard.read_cause(_cause)) is None and time.monotonic() < end:
            time.sleep(0.1)
        who = "a rank" if rank is None else f"rank {rank}"
        _known = known or guard.claim_cause(_cause, f"{who} has lost the others: {one_line(error, 200)}")
    elif not _is_lost(error):
        who = "a rank" if rank is None else f"rank {rank}"
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        guard.claim_cause(_cause, f"{who} failed: {kind}{one_line(error)}")
    return _known


@contextlib.contextmanager
def failures_shared() -> Iterator[None]:
    """Share with the other ranks why this process fails; at the end the guard knows that it is reported.

    Raises:
        UserError: what became of another rank, where that is why this one fails.
    """
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is None or isinstance(error, UserError):
            raise
        raise UserError(cause) from error
    finally:
        mark_reported()


def mark_reported() -> None:
    """Tell the guard that this process has reported why it ends."""
    _send("reported")


def detach() -> None:
    """Detach from the other ranks: what happens to them is no longer of interest here."""
    global _guard, _cause, _known
    if _guard is not None:
        _send("detach")
        _guard.communicate()
    _guard = _cause = _known = None


def _watch(cause: Path, rank: int, stop_timeout: float, launcher: int) -> None:
    global _guard, _cause, _known
    if _guard is None or _guard.poll() is not None:
        words = [rank, os.getpid(), stop_timeout, launcher]
        command = [sys.executable, "-I", "-S", guard.__file__, *map(str, words)]
        _guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _cause, _known = cause, None
    for left in guard.fallback_folder().glob(f"{PREFIX}cause-*"):
        with contextlib.suppress(OSError):  # others' too lie there
            if time.time() - left.stat().st_mtime > OLD:
                left.unlink()
    cause.parent.mkdir(parents=True, exist_ok=True)
    _send(f"watch {cause.absolute()}")


def _send(word: str) -> None:
    stdin: Any = None if _guard is None else _guard.stdin
    if stdin is not None:
        with contextlib.suppress(OSError, ValueError):
            stdin.write(f"{word}\n".encode())
            stdin.flush()


def _is_lost(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
