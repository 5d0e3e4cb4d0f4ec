import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from lighten.training import preempt
from lighten.training.checkpoint import latest_good
from lighten.training.order import OrderedLoader
from lighten.training.preempt import job_name, leave, stop_between_steps, will_requeue
from lighten.training.record import read
from lighten.training.signals import Preempted, armed

ROOT = Path(__file__).parents[2]


class Rows(torch.utils.data.Dataset):
    """Forty-eight rows; which epoch they are drawn in changes them a little, as augmentation does."""

    def __len__(self):
        return 48

    def __getitems__(self, places):
        rows = torch.tensor([[sample + epoch / 7 + column for column in range(5)] for epoch, sample in places])
        return torch.sin(rows), torch.tensor([sample % 2 for _, sample in places])


class Signal(L.Callback):
    """Sends ``signum`` in the step that makes ``step`` of them, or while a checkpoint is saved."""

    def __init__(self, signum, step, *, saving=False):
        self.signum = signum
        self.step = step
        self.saving = saving

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.signum)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if self.saving:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def fit(plain, trainer, batches):
    """Fit for three epochs of six steps, going on from what the folder has; returns the weights' SHA-256."""

    class Scheduled(plain):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches > 0  # as schedules over the whole fit do
            return super().configure_optimizers()

    def run(folder, *callbacks, **settings):
        module = Scheduled()
        loader = OrderedLoader(Rows(), batch_size=8, seed=3, workers=settings.pop("workers", 0))
        built = trainer(folder, callbacks=callbacks, **{"max_epochs": 3} | settings)
        resumed = latest_good(folder / "checkpoints")
        built.fit(module, loader, batches, ckpt_path=str(resumed) if resumed else None, weights_only=True)
        values = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
        return hashlib.sha256(values).hexdigest()

    return run


def steps(folder):
    return [line["step"] for line in read(folder / "history.jsonl") if "train/loss" in line]


def kept(folder):
    return sorted(path.name.partition("-")[0] for path in (folder / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("name", "step", "workers"),
    [("SIGTERM", 1, 0), ("SIGUSR1", 4, 0), ("SIGUSR1", 6, 0), ("SIGTERM", 8, 2), ("SIGTERM", 17, 0)],
)
def test_a_stopped_fit_ends_with_the_same_bits(tmp_path, fit, name, step, workers):
    whole = fit(tmp_path / "whole", workers=workers)
    folder = tmp_path / "stopped"
    with armed(), pytest.raises(Preempted, match=f"stopped by {name} after step {step}, .* has a checkpoint") as stop:
        fit(folder, Signal(getattr(signal, name), step), workers=workers)
    assert stop.value.code == 143
    assert f"step={step:07d}" in latest_good(folder / "checkpoints").name
    assert kept(folder).count("preempted") == (step != 6)
    assert steps(folder) == [*range(1, step + 1)]
    assert fit(folder, workers=workers) == whole
    assert steps(folder) == [*range(1, 19)]
    assert "preempted" not in kept(folder)


def test_stops_in_a_row_keep_one_checkpoint(tmp_path, fit):
    whole = fit(tmp_path / "whole")
    for step in (2, 3, 5):
        with armed(), pytest.raises(Preempted):
            fit(tmp_path / "stopped", Signal(signal.SIGTERM, step))
        assert kept(tmp_path / "stopped") == ["preempted"]
    assert fit(tmp_path / "stopped") == whole


def test_a_signal_in_the_last_step_stops_nothing(tmp_path, fit):
    with armed():
        fit(tmp_path, Signal(signal.SIGTERM, 18))
    assert steps(tmp_path) == [*range(1, 19)]


def test_gradients_are_accumulated_to_their_end_first(tmp_path, fit):
    whole = fit(tmp_path / "whole", accumulate_grad_batches=4)
    with armed(), pytest.raises(Preempted, match="after step 3,"):
        fit(tmp_path / "stopped", Signal(signal.SIGTERM, 3), accumulate_grad_batches=4)
    assert fit(tmp_path / "stopped", accumulate_grad_batches=4) == whole


def test_a_signal_while_saving_changes_nothing(tmp_path, fit):
    whole = fit(tmp_path / "whole")
    with armed(), pytest.raises(Preempted, match="SIGUSR1 after step 4,"):
        fit(tmp_path / "stopped", Signal(signal.SIGUSR1, 4, saving=True))
    assert fit(tmp_path / "stopped") == whole


def test_without_checkpoints_it_still_stops(tmp_path, fit):
    with armed(), pytest.raises(Preempted, match="no checkpoint was saved"):
        fit(tmp_path, Signal(signal.SIGTERM, 4), enable_checkpointing=False)


def test_an_unarmed_fit_leaves_signals_to_others(tmp_path, fit):
    with armed():
        os.kill(os.getpid(), signal.SIGTERM)
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        fit(tmp_path, Signal(signal.SIGUSR1, 4))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]


@pytest.fixture
def slurm(monkeypatch):
    """A Slurm job, and what was asked of ``scontrol``."""
    asked = []

    def job(facts, failure="", **environment):
        for key, value in {"SLURM_JOB_ID": "12", **environment}.items():
            monkeypatch.setenv(key, value)

        def scontrol(*words):
            asked.append(words)
            shown = words[0] == "show"
            return subprocess.CompletedProcess(words, 0 if shown else len(failure), facts if shown else "", failure)

        monkeypatch.setattr(preempt, "_scontrol", scontrol)
        return asked

    for name in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return job


@pytest.mark.parametrize(
    ("facts", "signum", "expected"),
    [
        ("Requeue=1 PreemptTime=None", signal.SIGUSR1, True),
        ("Requeue=0 PreemptTime=None", signal.SIGUSR1, False),
        ("Requeue=1 PreemptTime=None", signal.SIGTERM, False),
        ("Requeue=1 PreemptTime=2026-11-25T20:00:00", signal.SIGTERM, True),
        ("Requeue=0 PreemptTime=2026-11-25T20:00:00", signal.SIGTERM, False),
        ("", signal.SIGUSR1, False),
    ],
)
def test_what_is_queued_again(slurm, facts, signum, expected):
    asked = slurm(facts)
    assert will_requeue(signum) is expected
    leave(Preempted(signum, "after step 3"))
    assert (("requeue", "12") in asked) is expected


def test_outside_slurm_nothing_is_queued(slurm, capsys):
    assert not will_requeue(signal.SIGUSR1)
    leave(Preempted(signal.SIGUSR1, "after step 3"))
    assert capsys.readouterr().err == "stopped by SIGUSR1 after step 3; the same command resumes it\n"


def test_a_task_of_an_array_is_named_as_one(slurm):
    asked = slurm("Requeue=1", SLURM_ARRAY_JOB_ID="11", SLURM_ARRAY_TASK_ID="2")
    assert job_name() == "11_2"
    leave(Preempted(signal.SIGUSR1, "after step 3"))
    assert asked[-1] == ("requeue", "11_2")


def test_slurm_refusing_is_said(slurm, capsys):
    slurm("Requeue=1", failure="Access denied\n")
    leave(Preempted(signal.SIGUSR1, "after step 3"))
    assert capsys.readouterr().err == "stopped by SIGUSR1 after step 3; job 12: Access denied\n"


def test_after_the_fit_a_run_stops_only_if_it_is_queued_again(slurm):
    with armed():
        stop_between_steps()
        os.kill(os.getpid(), signal.SIGUSR1)
        stop_between_steps()
        slurm("Requeue=1")
        with pytest.raises(Preempted, match="stopped by SIGUSR1 after the fit"):
            stop_between_steps()


def test_of_two_processes_one_is_signalled_and_both_stop_in_the_same_step(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("preempt_fit.py")), "recipe=smoke", f"runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 143, done.stderr
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["4 SIGUSR1", "4 SIGUSR1"]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")] == [
        "preempted-epoch=000-step=0000004.ckpt"
    ]
    assert done.stderr.splitlines()[-1].startswith("stopped by SIGUSR1 after step 4,")


class Run:
    """``train.py`` with a tiny teacher, as a process that can be signalled at a moment."""

    def __init__(self, runs, name):
        self.runs = runs
        self.folder = runs / "smoke" / name
        self.command = [
            sys.executable, "train.py", "recipe=smoke", f"runs={runs}", f"id={name}", "teacher_options={widths:[4]}",
            "student_options={width:4,blocks:1,stem_stride:2}", "batch_size=16", "compress.quantize.begin=null",
            "trainer.limit_train_batches=60", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
            "distil.preflight=false",
        ]  # fmt: skip

    def start(self, when=None, name="SIGTERM"):
        """Return exit code and errors of a process that is sent the signal ``name`` once ``when`` is true of it."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            self.command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + 120
        while when is not None and not when(process.pid):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        if when is not None:
            process.send_signal(getattr(signal, name))
        errors = process.communicate(timeout=120)[1]
        return process.returncode, errors

    def holds_signals(self, pid):
        text = Path(f"/proc/{pid}/status").read_text()
        blocked = int(text.partition("SigBlk:")[2].split()[0], 16)
        return blocked >> (signal.SIGTERM - 1) & 1

    def teaches(self, _):
        return any(len(path.read_text().splitlines()) > 4 for path in self.runs.glob("references/*.fit/history.jsonl"))

    def learns(self, _):
        path = self.folder / "history.jsonl"
        return path.exists() and len(path.read_text().splitlines()) > 9

    def is_fitted(self, _):
        return (self.folder / "student" / "model.safetensors").exists()

    def results(self):
        files = [*self.runs.glob("references/*/model.safetensors"), self.folder / "student" / "model.safetensors"]
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_a_signal_that_comes_during_imports_stops_the_first_fit_after_a_step(tmp_path):
    run = Run(tmp_path, "a")
    code, said = run.start(run.holds_signals)
    assert (code, said.count("stopped by SIGTERM after step 1,")) == (143, 1), said
    (work,) = tmp_path.glob("references/*.fit")
    assert [path.name[:9] for path in work.glob("checkpoints/*.ckpt")] == ["preempted"]


@pytest.mark.slow
def test_a_run_stopped_at_every_stage_ends_with_the_same_bits(tmp_path):
    whole, stopped = Run(tmp_path / "whole", "a"), Run(tmp_path / "stopped", "a")
    assert whole.start() == (0, "")
    code, said = stopped.start(stopped.holds_signals)
    assert (code, said.count("stopped by SIGTERM after step 1,")) == (143, 1), said
    code, said = stopped.start(stopped.teaches, "SIGUSR1")
    assert (code, said.count("stopped by SIGUSR1 after step")) == (143, 1), said
    assert not stopped.folder.joinpath("history.jsonl").exists()
    code, said = stopped.start(stopped.learns)
    assert (code, said.count("stopped by SIGTERM after step")) == (143, 1), said
    assert kept(stopped.folder)[-1] == "preempted"
    code, said = stopped.start(stopped.is_fitted)
    assert (code, said) == (0, "SIGTERM received: stopping at the next step with a resumable checkpoint\n")
    assert (stopped.folder / "report.html").exists()
    assert stopped.results() == whole.results()
    assert steps(stopped.folder) == [*range(1, 121)]
