"""Preemption: saves in mid-epoch on all ranks at once; Slurm requeues."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from lighten.training import signals
from lighten.training.rank import is_rank_zero
from lighten.training.signals import PREEMPTED, Preempted

NAME = "preempted"


class Preempt(Callback):
    """Stops the fit after the step in which any rank has received SIGTERM or SIGUSR1, with a checkpoint of that step.

    The signals' handler only sets a flag, see :mod:`lighten.training.signals`. After each optimizer step ranks agree on
    it, save together, let that step be logged, and raise before the next one. The last step of an epoch needs no save
    of its own: the epoch's checkpoint follows. Lightning's own handlers, which talk to other ranks at any line, stay
    out. List it after callbacks that change the model.

    Args:
        folder: where checkpoints go; ``None`` saves none.

    Raises:
        Preempted: on all ranks, in the same step.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._signum: signal.Signals | None = None
        self._begun = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep Lightning from putting its handlers before ours."""
        self._signum = None
        if signals.is_armed():
            cast(Any, trainer)._signal_connector.register_signal_handlers = lambda: None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the fit resumes, and see that its data do so too.

        Lightning leaves the loader at the epoch's beginning when somebody has asked for the fit's length before its
        loops were restored, as schedules do.
        """
        self._begun = trainer.global_step
        trainer.fit_loop._load_combined_loader_states()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove a checkpoint of an earlier stop, once an epoch's own is there."""
        if trainer.global_step > self._begun:
            self._remove(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if the step before was the last one."""
        if self._signum is not None:
            kept = "no checkpoint was saved" if self.folder is None else f"{self.folder.parent} has a checkpoint of it"
            raise Preempted(self._signum, f"after step {trainer.global_step}, {kept}", code=_exit_code(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree, and save."""
        last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        if not last and (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._signum = _agree(trainer)
        if self._signum is not None and not last and self.folder is not None:
            path = self.folder / f"{NAME}-epoch={trainer.current_epoch:03d}-step={trainer.global_step:07d}.ckpt"
            trainer.save_checkpoint(path)
            self._remove(trainer, but=path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what the last epoch's checkpoint has made needless."""
        if trainer.global_step > self._begun:
            self._remove(trainer)

    def _remove(self, trainer: L.Trainer, but: Path | None = None) -> None:
        if self.folder is not None and trainer.is_global_zero:
            for path in self.folder.glob(f"{NAME}-*.ckpt"):
                if path != but:
                    trainer.strategy.remove_checkpoint(path)


def leave(stop: Preempted) -> None:
    """End what a stopped run has open, and ask Slurm to start it again; all ranks call this before they exit.

    Rank zero ends the W&B run, which the next start resumes, and requeues; the others wait for it, as the end of
    one process ends them all.
    """
    if is_rank_zero():
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()
        print(f"{stop}; {_requeue(stop.signum)}", file=sys.stderr, flush=True)
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):  # rank zero is gone: nothing to wait for
            dist.barrier()


def stop_between_steps() -> None:
    """Stop a run whose fit is over if its job is about to be taken away and would be started again.

    Outside Slurm nothing is taken away at a known time, and the run continues to its end.

    Raises:
        Preempted: if so.
    """
    signum = signals.received()
    if signum is not None and will_requeue(signum):
        raise Preempted(signum, "after the fit")


def will_requeue(signum: signal.Signals) -> bool:
    """Return whether this job can and should be queued again after ``signum``.

    SIGUSR1 is the warning that ``--signal`` asks for. SIGTERM comes from ``scancel`` and time limits too, and counts
    only where Slurm says that it preempts the job.
    """
    facts = _job_facts()
    preempted = facts.get("PreemptTime", "None") != "None"
    return facts.get("Requeue") == "1" and (signum != signal.SIGTERM or preempted)


def job_name() -> str | None:
    """Return the Slurm job's name for ``scontrol``, or ``None`` outside; a bare id may mean a whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _agree(trainer: L.Trainer) -> signal.Signals | None:
    seen = signals.received()
    if trainer.world_size == 1:
        return seen
    if not trainer.strategy.reduce_boolean_decision(seen is not None, all=False):
        return None
    warned = trainer.strategy.reduce_boolean_decision(seen not in (None, signal.SIGTERM), all=False)
    return signal.SIGUSR1 if warned else signal.SIGTERM


def _exit_code(trainer: L.Trainer) -> int:
    """Processes that Lightning has started end with 0: on anything else it kills the first, which may still be busy."""
    strategy = cast(Any, trainer.strategy)
    started = isinstance(getattr(strategy, "cluster_environment", None), LightningEnvironment)
    return 0 if started and trainer.global_rank > 0 else PREEMPTED


def _requeue(signum: signal.Signals) -> str:
    job = job_name()
    if job is None:
        return "the same command resumes it"
    if not will_requeue(signum):
        return f"job {job} is not queued again, the same command with its id resumes it"
    done = _scontrol("requeue", job)
    return f"job {job} is queued again" if done.returncode == 0 else f"job {job}: {done.stderr.strip()}"


def _job_facts() -> dict[str, str]:
    job = job_name()
    if job is None:
        return {}
    shown = _scontrol("show", "job", job, "--oneliner")
    return dict(part.partition("=")[::2] for part in shown.stdout.split())


def _scontrol(*words: str) -> "subprocess.CompletedProcess[str]":
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", f"scontrol cannot be run ({error})")
