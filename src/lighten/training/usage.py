"""Use of the machine: processor, memory, GPU, under W&B's names."""

import os
import time
from pathlib import Path

import torch

CPU, PROCESS, MACHINE, GPU = (
    "system/cpu",
    "system/proc.memory.rssMB",
    "system/memory_percent",
    "system/gpu.memoryAllocatedMB",
)
NAMES = (CPU, PROCESS, MACHINE, GPU)
"""In per cent of all cores, of this process alone; MB; per cent; MB of tensors on this process's GPU."""

_PAGE = os.sysconf("SC_PAGE_SIZE") / 1e6 if hasattr(os, "sysconf") else 0.0


class Usage:
    """Counts processor time from one look to the next."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._wall, self._spent = time.monotonic(), time.process_time()

    def look(self) -> dict[str, float]:
        """Return what can be known here by :data:`NAMES`; the processor's share is that since the last look.

        Memory is given where the system has ``/proc``, a GPU's where this process has one.
        """
        wall, spent = time.monotonic(), time.process_time()
        passed = max(wall - self._wall, 1e-6)
        found = {CPU: min(100.0, 100 * (spent - self._spent) / passed / self._cores)}
        self._wall, self._spent = wall, spent
        try:
            found[PROCESS] = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
            found[MACHINE] = _machine(Path("/proc/meminfo").read_text())
        except (OSError, ValueError, LookupError):
            pass  # not Linux
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found[GPU] = torch.cuda.memory_allocated() / 1e6
        return {name: round(value, 2) for name, value in found.items()}


def _machine(text: str) -> float:
    sizes = {name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in text.splitlines())}
    return 100 * (1 - sizes["MemAvailable"] / sizes["MemTotal"])
