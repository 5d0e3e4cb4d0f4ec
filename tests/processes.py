"""Fits of several processes, each in a script of its own, started as a launcher starts them."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

LEFT_BEHIND = ("WANDB_SERVICE", "_WANDB", "PL_GLOBAL_SEED")
"""What variables of this process begin with that speak of another fit: its service, its seed."""


def run_fits(script: Path, *words: object, ports: int | None = None, **environment: str) -> str:
    """Run a script to its good end and return what it wrote to standard error.

    Args:
        script: starts its further ranks itself.
        words: its arguments.
        ports: how many free ports it gets as further arguments, instead of one as ``MASTER_PORT``.
        environment: beside this process's, of which those of another fit are left out.
    """
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(ports or 1)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        free = [str(probe.getsockname()[1]) for probe in sockets]
    own = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    own |= {} if ports else {"MASTER_PORT": free[0]}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_BEHIND)}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words), *(free if ports else [])],
        env={**inherited, **own, **environment}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
