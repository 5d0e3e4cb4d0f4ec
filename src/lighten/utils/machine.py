"""Facts about this machine: processor, installed packages."""

import os
import platform
import re
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """Return what the machine calls its processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the processor's instruction sets, as Linux names them; none where it does not."""
    return frozenset(_cpuinfo("flags|Features").split())


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds: float, *, wait: Callable[[float], None] = time.sleep) -> float:
    """Return how many cores are busy, over so many seconds; 0 where the system does not tell.

    Args:
        seconds: to watch.
        wait: passes the time.
    """
    before = _ticks()
    wait(seconds)
    after = _ticks()
    whole = sum(after) - sum(before)
    if not before or whole <= 0:
        return 0.0
    idle = sum(after[3:5]) - sum(before[3:5])  # idle, and waiting for disks
    return (os.cpu_count() or 1) * (1 - idle / whole)


def _ticks() -> list[int]:
    """Return the processor's time by what it was spent on, of all cores; empty where there is no ``/proc/stat``."""
    path = Path("/proc/stat")
    line = path.read_text(encoding="utf-8").split("\n", 1)[0] if path.exists() else ""
    return [int(field) for field in line.split()[1:9]]


def _cpuinfo(key: str) -> str:
    """Return the first entry of ``/proc/cpuinfo`` whose key matches, empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(rf"^(?:{key})\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def version_of(package: str) -> str | None:
    """Return the version of an installed package; ``None`` is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
