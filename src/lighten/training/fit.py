"""The Trainer of every fit."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from lighten.training.checkpoint import AtomicCheckpointIO, checkpointing
from lighten.training.finite import StopOnNonFinite
from lighten.training.peers import RankMonitor, detach
from lighten.training.preempt import Preempt
from lighten.training.progress_bar import progress_bar
from lighten.training.record import History
from lighten.training.seeding import SeedSteps

HARMLESS = (
    ".*treespec, LeafSpec",  # its own trees, which torch wants made another way
    ".*does not have many workers which may be a bottleneck",  # data in memory want none
    ".*smaller than the logging interval",  # validation is recorded anyway
    "The `srun` command is available",  # a login node's own fits are no jobs
    ".*Trainer configured with multiple `ModelCheckpoint` callbacks",  # the first is the one that keeps the best
)
"""Warnings of Lightning's about choices that are meant."""


def make_trainer(
    *,
    folder: str | Path,
    stage: str,
    settings: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    logger: Logger | Literal[False] = False,
    monitor: str | None = "student/accuracy",
    mode: str = "max",
    seed: int = 0,
    on_bad_batch: str = "stop",
) -> L.Trainer:
    """Return a Trainer that saves safely, records its history, stops on NaN or a signal and shows which stage it is in.

    Checkpoints go to ``folder/checkpoints``, the history to ``folder/history.jsonl``.

    Args:
        folder: the run folder, or one of the stage's own.
        stage: named in the progress bar, such as ``student``.
        settings: Lightning's Trainer arguments; they win over the defaults here. ``timeout``, in seconds, is the
            strategy's: how long processes wait for one that is stopped, or does not come to where the others are.
        callbacks: run before those added here, in their order.
        logger: see :func:`lighten.training.loggers.make_logger`.
        monitor: metric of the best checkpoint; ``None`` keeps no best.
        mode: ``max`` where more of it is better, ``min`` where less is.
        seed: of everything random in the training steps.
        on_bad_batch: ``stop`` or ``skip``, see :class:`~lighten.training.finite.StopOnNonFinite`.
    """
    _quieten()
    folder = Path(folder)
    given: dict[str, Any] = {
        "default_root_dir": folder,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        **settings,
    }
    timeout = given.pop("timeout", None)
    given["precision"] = resolve_precision(given.get("precision", "32-true"), given.get("accelerator", "auto"))
    added: list[Callback] = [
        RankMonitor(),
        SeedSteps(seed),
        *callbacks,
        StopOnNonFinite(on_bad_batch),
        History(folder / "history.jsonl"),
    ]
    saves = given.setdefault("enable_checkpointing", True)
    added.append(Preempt(folder / "checkpoints" if saves else None))
    if saves:
        added += checkpointing(folder / "checkpoints", monitor=monitor, mode=mode)
    if given.setdefault("enable_progress_bar", True):
        added.append(progress_bar(stage))
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer = L.Trainer(**given, callbacks=added, logger=logger, plugins=plugins)
    if timeout is not None:  # Lightning takes it from those alone who make a strategy themselves
        cast(Any, trainer.strategy)._timeout = timedelta(seconds=timeout)
    return trainer


def leave_processes() -> None:
    """Part from the processes that a strategy has brought together, once no fit follows that needs them.

    What comes after runs by itself: data loaders serve whole data sets, and a later fit does not wait for this one's
    processes. Lightning leaves the group open.
    """
    detach()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def resolve_precision(precision: str | int, accelerator: str = "auto") -> str | int:
    """Return Lightning's name for ``precision``, where ``auto`` is bfloat16 if that is fast here, else float32.

    It is fast on CUDA devices that compute in it, and on CPUs with AVX512-BF16 or AMX instructions; elsewhere
    it is emulated and many times slower than float32.
    """
    if precision != "auto":
        return precision
    on_cuda = accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()
    if on_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("cpu", "auto"):
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"


def _quieten() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
