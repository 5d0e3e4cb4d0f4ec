"""SIGTERM and SIGUSR1 as a flag. Imports nothing heavy, so that it is armed early."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What asks a run to stop: ``kill``, schedulers; Slurm's ``--signal=USR1@SECONDS``."""

PREEMPTED = 143
"""The exit code of a run that was asked to stop and did: 128 + SIGTERM, as shells count it."""

_seen: list[signal.Signals] = []
_armed_in: int | None = None
"""The process that takes signals as a flag: data loaders' workers inherit the handler."""


class Preempted(SystemExit):
    """A run was asked to stop and has saved what it needs to resume; the exit code is 143.

    Args:
        signum: what asked for it.
        message: one line: where it stopped and what was saved.
        code: another exit code, for processes whose end must not count.
    """

    def __init__(self, signum: signal.Signals, message: str, *, code: int = PREEMPTED) -> None:
        super().__init__(code)
        self.signum = signum
        self.message = message

    def __str__(self) -> str:
        return f"stopped by {self.signum.name} {self.message}"


def hold() -> None:
    """Keep the signals waiting until :func:`armed` can take them, so that none kills the process during imports.

    Call it first of all, while there is one thread.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Let the signals that :func:`hold` keeps waiting end the process, as is usual."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def die_with_parent(parent: int) -> None:
    """Have this process killed when the one that has started it ends, ``parent``, and end now if it has; Linux alone.

    Lightning's launcher looks after its processes as long as it lives, and no longer.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


@contextmanager
def armed() -> Iterator[None]:
    """Take the signals as a flag, instead of as an end, while the block runs.

    Afterwards handlers are what they were. Of a process that held signals back until now, nothing is left but its end:
    there they are ignored, in all threads. Does nothing outside the main thread, where Python takes no signals.
    """
    global _armed_in
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    _seen.clear()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    _armed_in = os.getpid()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            afterwards = signal.SIG_DFL if handler is None else handler
            signal.signal(number, signal.SIG_IGN if number in mask else afterwards)
        _armed_in = None
        _seen.clear()


def is_armed() -> bool:
    """Return whether signals are taken as a flag now."""
    return _armed_in == os.getpid()


def received() -> signal.Signals | None:
    """Return the first signal that came, or ``None``."""
    return _seen[0] if _seen else None


def _note(number: int, frame: FrameType | None) -> None:
    """Set the flag. No more than that is safe here: any line of the run may be half done."""
    if not _seen and is_armed():
        os.write(
            2,
            f"{signal.Signals(number).name} received: stopping at the next step with a resumable checkpoint\n".encode(),
        )
    _seen.append(signal.Signals(number))
