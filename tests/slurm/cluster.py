"""A Slurm of two nodes on this machine, for tests: nothing outside a scratch folder is touched."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from need import need

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONF = """\
ClusterName=lighten
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MinJobAge=600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=9 PreemptMode=OFF State=UP
"""


class Cluster:
    """Commands of the Slurm in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """Return what a command prints; it must succeed."""
        done = subprocess.run(
            command, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job."""
        shown = self("scontrol", "show", "job", job, "--oneliner")
        return dict(part.partition("=")[::2] for part in shown.split())

    def wait(self, job: str, *states: str, seconds: float = 150) -> dict[str, str]:
        """Return the facts of a job once it is in one of ``states``."""
        until(lambda: self.facts(job)["JobState"] in states, f"job {job} {states}", seconds)
        return self.facts(job)


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for ``true``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} seconds"
        time.sleep(0.1)


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """Bring up a Slurm in ``folder``, and end it by the numbers of its processes."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    need(not missing, f"Slurm ({', '.join(missing)} missing)", "apt-get install slurm-wlm munge")
    need(os.geteuid() == 0, "root, as Slurm's nodes do", "run pytest as root")
    processes: list[subprocess.Popen[bytes]] = []
    cluster = Cluster(folder)
    try:
        _start(cluster, processes)
        yield cluster
    finally:
        for job in subprocess.run(
            ["squeue", "--noheader", "--format=%A"],
            env=cluster.environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split():
            subprocess.run(["scancel", "--signal=KILL", "--full", job], env=cluster.environment, check=False)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(cluster: Cluster, processes: list["subprocess.Popen[bytes]"]) -> None:
    folder = cluster.folder
    for name in ("state", "spool.node1", "spool.node2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    text = CONF.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(text)
    # what stands for a device is counted, never opened
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")

    def start(command: Sequence[str], environment: Mapping[str, str] = cluster.environment) -> None:
        log = (folder / f"{Path(command[0]).name}.out").open("ab")
        with log:
            processes.append(
                subprocess.Popen(command, env={**environment, "PATH": _path()}, stdout=log, stderr=log, cwd=folder)
            )

    start([
        "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    ])  # fmt: skip
    until((folder / "munge.socket").exists, "munged")
    conf = str(folder / "slurm.conf")
    start(["slurmctld", "-D", "-c", "-f", conf])
    for node in ("node1", "node2"):
        start(["slurmd", "-D", "-N", node, "-f", conf])
    ready = ["srun", "--nodes=2", "--ntasks=2", "true"]
    until(
        lambda: (
            subprocess.run(ready, env=cluster.environment, capture_output=True, timeout=20, check=False).returncode == 0
        ),
        f"a first job (see {folder})",
    )


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
