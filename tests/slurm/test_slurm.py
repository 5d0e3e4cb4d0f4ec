import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import until

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from hangs import Cell, faults

ROOT = Path(__file__).parents[2]
SMALL = (
    "recipe=smoke", "teacher=null", "student_options={width:4,blocks:1,stem_stride:2}", "batch_size=16",
    "trainer.limit_train_batches=60", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
)  # fmt: skip


class Jobs:
    """Submits the scripts as a user does, with logs and runs in a folder of the test."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder
        self.path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"

    def submit(self, *command, **environment):
        log = f"{self.folder}/%{'A-%a' if 'slurm/sweep.sbatch' in command else 'j'}.log"
        environment = {"PATH": self.path, "SBATCH_OUTPUT": log, **environment}
        said = self.cluster("sbatch", *command, f"runs={self.folder}", cwd=ROOT, **environment)
        return said.split()[-1]

    def log(self, job):
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def run(self, job):
        return self.folder / "smoke" / job

    def finished(self, job):
        facts = self.cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
        assert facts["JobState"] == "COMPLETED", self.log(job)
        return facts

    def weights(self, job):
        return hashlib.sha256((self.run(job) / "student" / "model.safetensors").read_bytes()).hexdigest()

    def wandb_steps(self, job):
        """Return the optimizer steps that W&B's records have a loss for, before the step counted from 0."""
        steps = []
        for path in sorted(self.run(job).glob("wandb/offline-run-*/*.wandb")):
            command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(path)]
            shown = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True).stdout
            records = [r for r in shown.split("\n# record ") if re.match(r"\d+: history", r) and '"train/loss"' in r]
            steps += [int(re.search(r'trainer/global_step"\s+value_json: "(\d+)"', r)[1]) for r in records]
        return steps

    def steps(self, job):
        path = self.run(job) / "history.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line["step"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    return Jobs(cluster, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def undisturbed(jobs):
    """A job of two nodes, asked for by the recipe's own setting."""
    first = jobs.submit("slurm/train.sbatch", *SMALL, "trainer.num_nodes=2")
    jobs.finished(first)
    job = re.search(r"Submitted batch job (\d+)", jobs.log(first))[1]
    jobs.finished(job)
    return job


def test_a_job_of_two_nodes_finishes(jobs, undisturbed):
    facts = jobs.cluster.facts(undisturbed)
    assert (facts["JobState"], facts["ExitCode"], facts["NumNodes"]) == ("COMPLETED", "0:0", "2")
    assert (jobs.run(undisturbed) / "report.html").exists()
    assert jobs.steps(undisturbed) == [*range(1, 121)]


def test_a_warned_job_is_queued_again_by_itself_and_ends_with_the_same_weights(jobs, undisturbed):
    wandb = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    job = jobs.submit("--nodes=2", "slurm/train.sbatch", *SMALL, "logger=wandb", **wandb)
    until(lambda: len(jobs.steps(job)) >= 5, "five steps", 90)
    jobs.cluster("scancel", "--signal=USR1", job)
    until(lambda: jobs.cluster.facts(job)["Restarts"] == "1", "queued again")
    stopped = jobs.steps(job)[-1]
    assert stopped < 120
    facts = jobs.finished(job)
    assert facts["Restarts"] == "1"
    assert jobs.weights(job) == jobs.weights(undisturbed)
    assert jobs.steps(job) == [*range(1, 121)]
    assert jobs.wandb_steps(job) == [*range(120)]
    log = jobs.log(job)
    assert f"stopped by SIGUSR1 after step {stopped}," in log
    assert f"job {job} is queued again" in log
    assert log.count(f"run {jobs.run(job)}") == 2


@pytest.mark.slow
def test_a_job_longer_than_its_time_limit_goes_on_as_often_as_it_takes(jobs):
    """Slurm looks at limits every half minute, and warns as much early: a start has 30 to 60 seconds."""
    settings = ["trainer.max_epochs=25", "trainer.limit_train_batches=150", "compress.quantize.begin=null"]
    limit = ("--time=2", "--signal=USR1@60")
    job = jobs.submit("--nodes=2", *limit, "slurm/train.sbatch", *SMALL, *settings)
    facts = jobs.cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=1200)
    assert facts["JobState"] == "COMPLETED", jobs.log(job)
    assert facts["TimeLimit"] == "00:02:00"
    assert int(facts["Restarts"]) >= 1
    assert jobs.steps(job) == [*range(1, 3751)]
    assert jobs.log(job).count("stopped by SIGUSR1 after") == int(facts["Restarts"])


@pytest.mark.parametrize(("harm", "to"), [("raise", "1"), ("STOP", "0")])
def test_what_comes_to_one_node_ends_the_job(cluster, tmp_path, harm, to):
    assert faults(Cell("slurm", harm, to), tmp_path, cluster, seconds=150) == []


@pytest.mark.slow  # as a warned one is
def test_a_preempted_job_is_queued_again(jobs):
    job = jobs.submit("slurm/train.sbatch", *SMALL, "compress.quantize.begin=null")
    until(lambda: len(jobs.steps(job)) >= 5, "five steps", 90)
    jobs.cluster("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
    facts = jobs.finished(job)
    assert facts["Restarts"] == "1"
    assert "stopped by SIGTERM after step" in jobs.log(job)
    assert jobs.steps(job) == [*range(1, 121)]


def test_a_cancelled_job_stays_cancelled(jobs):
    job = jobs.submit("slurm/train.sbatch", *SMALL)
    until(lambda: len(jobs.steps(job)) >= 5, "five steps", 90)
    jobs.cluster("scancel", job)
    facts = jobs.cluster.wait(job, "CANCELLED")
    assert facts["Restarts"] == "0"
    until(lambda: "is not queued again" in jobs.log(job), "its last line")
    assert [path.name[:9] for path in (jobs.run(job) / "checkpoints").glob("*.ckpt")] == ["preempted"]


@pytest.mark.slow
def test_a_sweep_gives_each_task_its_recipe_and_its_folder(jobs):
    settings = ["compress.quantize.begin=null", "trainer.limit_train_batches=5"]
    job = jobs.submit("--array=0-1", "slurm/sweep.sbatch", *SMALL, *settings, "seed=3,4")
    for task in (0, 1):
        facts = jobs.finished(f"{job}_{task}")
        assert facts["JobState"] == "COMPLETED"
        assert f"seed: {3 + task}\n" in (jobs.run(f"{job}-{task}") / "recipe.yaml").read_text()
        assert (jobs.run(f"{job}-{task}") / "report.html").exists()


def test_a_mistake_fails_the_job_and_its_log_says_why(jobs):
    job = jobs.submit("slurm/train.sbatch", *SMALL, "optimizer.lr=-1")
    facts = jobs.cluster.wait(job, "FAILED", "COMPLETED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert "error: optimizer.lr=-1.0: expected a number above 0" in jobs.log(job)


@pytest.fixture
def told(jobs, tmp_path):
    """Submit with a ``python`` that writes down what it was told, and return that, a line a task."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$SLURM_LOCALID $SLURM_NODEID of $SLURM_NTASKS: ${*//runs=*/}"\n')
    python.chmod(0o755)

    def submit(*command, **environment):
        path = f"{tmp_path}:{jobs.path}"
        job = jobs.submit(*command, PATH=path, **environment)
        jobs.finished(job)
        return job, sorted(line.rstrip() for line in jobs.log(job).splitlines())

    return submit


def test_each_device_has_a_process(told):
    job, lines = told(
        "--nodes=2", "--ntasks-per-node=2", "slurm/train.sbatch", "recipe=smoke", SBATCH_GPUS_PER_NODE="2"
    )
    common = f"of 4: train.py id={job} trainer.num_nodes=2 trainer.devices=2 recipe=smoke"
    assert lines == [f"{local} {node} {common}" for local in (0, 1) for node in (0, 1)]


def test_devices_alone_decide_the_number_of_processes(told):
    _, lines = told("slurm/train.sbatch", "recipe=smoke", SBATCH_GPUS_PER_NODE="2")
    assert [line[:8] for line in lines] == ["0 0 of 2", "1 0 of 2"]
