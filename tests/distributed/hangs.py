"""Fits of two processes to which harm comes, and what must have become of them; for tests and the benchmark."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("hang_fit.py")
ROOT = SCRIPT.parents[2]
SECONDS = 30.0
"""How soon after the harm is noticed all processes must have ended."""
PATIENCE = 3.0
"""How long a stopped rank is waited for in these fits."""
HUNG = 300.0
"""Seconds after which a fit that has not ended is taken for one that never will, however busy the machine."""
START = 300.0
"""Seconds that a fit may take to come to the harm."""

LAST = {
    "KILL": r"error: rank [{to}] was killed \(process \d+ on .+\)",
    "STOP": r"error: rank [{to}] was stopped \(SIGSTOP\) for 3 seconds, process \d+ on .+",
    "raise": r"(\[rank[{to}]\]: |error: rank [{to}] failed: )?KeyError: 'out of luck'",
    "TERM": r"stopped by SIGTERM after step 4, .* has a checkpoint of it; .*",
    "USR1": r"stopped by SIGUSR1 after step 4, .* has a checkpoint of it; .*",
    "nan": r"error: the loss is nan on rank [{to}] at step 3 \(epoch 0\); lower optimizer\.lr.*",
    "range": r"error: quantize: activations at '\S+' are not finite at step 3 \(epoch 1\); lower the learning rate",
    "disk": r"error: (rank 0 failed: )?checkpoint \S+\.ckpt could not be written \(No space left on device\); .*",
    "sleep": r"error: rank [01] has lost the others: .*",
}
"""The last line of stderr, as a pattern; ``{to}`` are the ranks that harm came to."""

NOT_OURS = re.compile(r"srun: |slurmstepd\S*: |SIG(TERM|USR1) received: ")
"""What Slurm adds, and what other ranks than the first say of a signal, as the first one alone tells the end."""


@dataclass(frozen=True)
class Cell:
    """One fit: who starts it, what comes to whom, and whether one rank lags behind."""

    launcher: str
    harm: str
    to: str
    skew: bool = False

    def __str__(self) -> str:
        return f"{self.launcher} {self.harm} {self.to}{' skewed' if self.skew else ''}"

    @property
    def environment(self) -> dict[str, str]:
        slow = ("1" if self.to == "0" else "0") if self.skew else ""
        own = {"HARM": self.harm, "TO": self.to, "SLOW": slow, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return {**own, "MASTER_ADDR": "127.0.0.1"} if self.launcher == "slurm" else own


LAUNCHERS = ("lightning", "torchrun", "slurm")
MATRIX = [
    Cell(launcher, harm, to, skew)
    for launcher, harm, to, skew in product(
        LAUNCHERS, ("KILL", "raise", "TERM", "USR1", "STOP"), ("0", "1", "0,1"), (False, True)
    )
]


def faults(cell: Cell, folder: Path, cluster: Any = None, seconds: float = SECONDS) -> list[str]:
    """Run a fit and return what was wrong with its end: nothing, if all is well."""
    return _slurm(cell, folder, cluster, seconds) if cell.launcher == "slurm" else _local(cell, folder, seconds)


def _local(cell: Cell, folder: Path, seconds: float) -> list[str]:
    mark = uuid.uuid4().hex
    words = [str(SCRIPT), "recipe=smoke", f"runs={folder}", "id=one", "trainer.devices=2", "trainer.timeout=120"]
    if cell.harm == "sleep":
        words[-1] = "trainer.timeout=45"
    logs = folder / "logs"
    redirect = ["--redirects=2", f"--log-dir={logs}"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--rdzv-endpoint=localhost:{_port()}", *redirect]
    command = [sys.executable, *(torchrun if cell.launcher == "torchrun" else []), *words]
    environment = {**os.environ, **cell.environment, "HANG": mark}
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT)
    found = _ended(cell, folder, mark, seconds, lambda: process.poll() is not None)
    try:
        code = process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    preempted = cell.harm in ("TERM", "USR1")
    # torchrun's own code is 1 whatever its processes' is
    if code == 0 or (preempted and code != (1 if cell.launcher == "torchrun" else 143)):
        found.append(f"exit code {code}")
    if cell.launcher == "lightning":
        texts = [(folder / "stderr").read_text()]
    else:
        texts = [text for path in sorted(logs.rglob("stderr.log")) if (text := path.read_text()).strip()]
    return found + _last_lines(cell, texts)


def _slurm(cell: Cell, folder: Path, cluster: Any, seconds: float) -> list[str]:
    mark = uuid.uuid4().hex
    (folder / "train.py").write_text(f"import runpy\n\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")
    path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    said = cluster(
        "sbatch", "--nodes=2", f"--output={folder}/stderr", str(ROOT / "slurm/train.sbatch"), "recipe=smoke",
        f"runs={folder}", "trainer.timeout=120", cwd=folder, PATH=path, HANG=mark, **cell.environment,
    )  # fmt: skip
    job = said.split()[-1]
    over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
    queued_again = cell.harm == "USR1"

    def ended() -> bool:
        facts = cluster.facts(job)
        return facts["JobState"] in over or (queued_again and facts["Restarts"] == "1")

    found = _ended(cell, folder, mark, seconds, ended, left=() if queued_again else None)
    if queued_again:
        facts = cluster.wait(job, *over, seconds=START)
        if (facts["JobState"], facts["Restarts"]) != ("COMPLETED", "1"):
            found.append(f"{facts['JobState']} after {facts['Restarts']} restarts, expected to go on to its end")
    else:
        facts = cluster.facts(job)
        wanted = "143:0" if cell.harm == "TERM" else None
        if facts["JobState"] != "FAILED" or facts["ExitCode"] == "0:0" or wanted not in (None, facts["ExitCode"]):
            found.append(f"{facts['JobState']} with exit code {facts['ExitCode']}")
    text = (folder / "stderr").read_text() if (folder / "stderr").exists() else ""
    return found + _last_lines(cell, [text])


def _ended(
    cell: Cell, folder: Path, mark: str, seconds: float, over: Callable[[], bool], left: tuple[int, ...] | None = None
) -> list[str]:
    """Wait for the harm and for the end of all; return what is wrong, and leave no process behind."""
    begun = time.monotonic()
    harmed = [folder / f"harmed{rank}" for rank in cell.to.split(",")]
    while not all(path.exists() for path in harmed):
        if over() or time.monotonic() - begun > START:
            break
        time.sleep(0.1)
    noticed = {"STOP": PATIENCE, "sleep": 45.0}.get(cell.harm, 0.0) + (1.0 if cell.skew else 0.0)
    since = time.monotonic() + noticed
    while time.monotonic() < since + HUNG and not (over() and not (_marked(mark) if left is None else left)):
        time.sleep(0.1)
    took = time.monotonic() - since
    late, found = _marked(mark) if left is None else [], []
    if not over():
        found.append(f"hung: has not ended in {HUNG:.0f} seconds")
    elif took > seconds:
        found.append(f"ended after {took:.0f} seconds, expected {seconds:.0f}")
    if late:
        found.append(f"hung: processes left: {late}")
    if not all(path.exists() for path in harmed):
        found.append("ended before the harm")
    for pid in late:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _last_lines(cell: Cell, texts: list[str]) -> list[str]:
    pattern = LAST[cell.harm].replace("{to}", cell.to)
    said = [[line for line in text.splitlines() if line and not NOT_OURS.match(line)] for text in texts]
    found = [] if any(said) else ["no line"]
    for lines in filter(None, said):
        if cell.harm == "USR1" and cell.launcher == "slurm":  # the job has gone on since
            lines = [line for line in lines if line.startswith("stopped by")]
        if not lines or not re.fullmatch(pattern, lines[-1]):
            found.append(f"last line {lines[-1] if lines else ''!r}")
    return found


def _marked(mark: str) -> list[int]:
    """Return the processes, zombies left out, whose environment holds ``mark``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
