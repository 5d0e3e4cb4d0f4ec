"""The guard process beside each rank of a fit: it ends a rank that would hang, and reports why.

Run as a script, by :mod:`lighten.training.peers`, with nothing but the standard library: it must be up at once, and
see what happens while its rank is stopped, waits in a collective, or is gone. Three things end a rank:

- it is stopped (SIGSTOP) for ``stop_timeout`` seconds;
- another rank has failed, and this one still waits ``GRACE`` seconds later;
- it failed itself, and is still there ``GRACE`` seconds after it has said so.

Whoever fails first leaves one line in a file that all ranks read, so that each can report it last. Time is counted in
polls of this process: where a whole job is suspended, or a terminal's Ctrl-Z stops all of it, so is this, and nothing
is ended.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

INTERVAL = 0.5
"""Seconds between two polls."""

GRACE = 10.0
"""Seconds that a rank has to end by itself once one has failed: time to print, and to close what is open."""


class Guard:
    """Watches one process.

    Args:
        rank: its number, for messages.
        pid: the process, which is this one's parent.
        stop_timeout: seconds that it may be stopped.
        launcher: the process that has started it and whose end is its own, or 0: what became of that comes first.
    """

    def __init__(self, rank: int, pid: int, stop_timeout: float, launcher: int = 0) -> None:
        self.rank = rank
        self.pid = pid
        self.stop_timeout = stop_timeout
        self.launcher = launcher
        self.cause: Path | None = None
        self.failed = self.reported = False
        self._rest = b""
        self._stopped = self._late = 0.0

    def receive(self, data: bytes) -> bool:
        """Parse messages from the rank, one a line; return ``True`` after ``detach``."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "watch":
                self.cause, self.failed, self.reported = Path(rest), False, False
            elif word == "failed":
                self.failed = True
            elif word == "reported":
                self.reported = True
            elif word == "detach":
                return True
        return False

    def poll(self, seconds: float) -> bool:
        """Check the rank, ``seconds`` after the last time; return whether it is gone or was ended."""
        if os.getppid() != self.pid:
            self._late += seconds
            if self._late < GRACE and self.launcher and not _state(self.launcher) and not self._known():
                return False  # the launcher's own guard reports it
            if not self.reported:
                self._report(f"rank {self.rank} was killed (process {self.pid} on {socket.gethostname()})")
            return True
        self._stopped = self._stopped + seconds if _state(self.pid) == "T" else 0.0
        if self._stopped >= self.stop_timeout:
            where = f"process {self.pid} on {socket.gethostname()}"
            return self._end(f"rank {self.rank} was stopped (SIGSTOP) for {self.stop_timeout:g} seconds, {where}")
        waits = self.reported or (not self.failed and self._known())
        self._late = self._late + seconds if waits else 0.0
        return self._late >= GRACE and self._end(f"rank {self.rank} did not end")

    def _known(self) -> bool:
        return self.cause is not None and read_cause(self.cause) is not None

    def _end(self, why: str) -> bool:
        if not self.reported:
            self._report(why)
        if os.getppid() == self.pid:
            os.kill(self.pid, signal.SIGKILL)
        return True

    def _report(self, why: str) -> None:
        if self.cause is not None:
            why = claim_cause(self.cause, why)
        os.write(2, f"error: {why}\n".encode())


def claim_cause(path: Path, why: str) -> str:
    """Record why a fit ends, unless that is known already; return what is known.

    A disk that takes nothing more is a cause too: then it is left in the system's temporary folder, where the ranks of
    this machine find it.
    """
    for place in _places(path):
        if (known := read_cause(path)) is not None:
            return known
        own = place.with_name(f"{place.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
                file.write(why + "\n")
            try:
                os.link(own, place)  # whole at once, and only for the first
            except OSError:
                if not place.exists():  # a file system without hard links
                    os.replace(own, place)
        with contextlib.suppress(OSError):
            own.unlink()
    return read_cause(path) or why


def read_cause(path: Path) -> str | None:
    """Return why the fit ends, or ``None`` as long as it does not."""
    for place in _places(path):
        with contextlib.suppress(OSError):
            if known := place.read_text().rstrip("\n"):
                return known
    return None


def fallback_folder() -> Path:
    """Return where a cause is left that the run's own disk does not take."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def _places(path: Path) -> tuple[Path, Path]:
    return path, fallback_folder() / path.name


def _state(pid: int) -> str:
    """Return the letter of a process's state, T where a signal has stopped it; nothing where it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""
    return "" if state in "ZX" else state


def main(rank: int, pid: int, stop_timeout: float, launcher: int) -> None:
    """Watch a rank until it is gone or detaches; its messages come through standard input."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # those are for the rank
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    guard, open_ = Guard(rank, pid, stop_timeout, launcher), True
    while True:
        ready, _, _ = select.select([0] if open_ else [], [], [], INTERVAL)
        data = os.read(0, 65536) if ready else b""
        open_ = open_ and not (ready and not data)
        if guard.receive(data) or guard.poll(0.0 if data else INTERVAL):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
