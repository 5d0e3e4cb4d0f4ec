"""Facts about this machine: processor, installed packages."""

import os
import platform
import re
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
