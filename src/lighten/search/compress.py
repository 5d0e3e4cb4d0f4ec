"""compress(): search for the best network that meets a stated need, or the nearest one."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.search.budget import check_epochs
from lighten.search.confirm import too_few
from lighten.search.named import ByName
from lighten.search.needs import Budget, Needs, budget_of, needs_of
from lighten.search.quality import ByTask, Quality
from lighten.search.result import Result
from lighten.search.splits import Splits, splits_of
from lighten.search.steps import Search
from lighten.search.storage import Storage
from lighten.search.subject import Subject, subject_of
from lighten.search.trial import check_trainer
from lighten.tasks.task import Task
from lighten.training import signals
from lighten.training.signals import Preempted

DEFAULT_EPOCHS = 20.0
"""Of training, over all trials, where no budget is given."""


def compress(
    model: nn.Module,
    datamodule: L.LightningDataModule,
    *,
    max_drop: float | str | None = None,
    target: Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    folder: str | Path | None = None,
    metric: tuple[str, str] | None = None,
    module: str | None = None,
    task: str | Task | None = None,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Result:
    """Compress a trained network as far as a stated need allows.

    First the float network is quantized after training, so that a first result exists at once. Then it is analysed, and
    fine-tuned a few times with the original as its teacher: pruned and trained through int8, each time as strongly as
    the measurements so far allow. Every finished trial is a model folder with its file. The choice is made on
    most of the validation data; the test data is then used once, to decide with an upper bound whether the need is met.
    The same call with the same ``folder`` resumes a search that was stopped.

    Args:
        model: a trained float network, or your own LightningModule that trains one; not changed.
        datamodule: has a validation part; training, choice and confirmation take their samples from it.
        max_drop: how much of the leading metric may be lost, as 0.01 or ``"1%"``; 0.01 if neither this nor a target is
            given.
        target: limits: ``latency_ms`` (with ``batch``, ``threads``, ``runtime``), ``bytes``, ``macs``, ``parameters``;
            numbers, or shares of the original such as ``"50%"``.
        budget: ``"20 min"``, ``"12 epochs"``, or minutes; by default 20 epochs.
        folder: for the search; by default a new one in ``runs/auto``.
        metric: for a LightningModule: a name that its ``validation_step`` logs, and ``"max"`` or ``"min"``.
        module: for a LightningModule: the part to compress.
        task: by default the data module's, otherwise classification.
        seed: of splits and fits.
        trainer: further arguments of Lightning's Trainer, other than its length, callbacks and loggers.
        on_progress: called with a sentence at each step.

    Raises:
        UserError: if needs or budget make no sense, data or model are not suitable, or no trial finishes.

    Example:
        >>> result = compress(model, datamodule, max_drop=0.01, budget="20 min")  # doctest: +SKIP
        >>> result.met, result.path  # doctest: +SKIP
        (True, PosixPath('runs/auto/20250101-120000/best/student.onnx'))
    """
    needs, limit, tell = needs_of(max_drop, target), budget_of(budget), on_progress or print
    if limit == Budget():
        limit = Budget(epochs=DEFAULT_EPOCHS)
        tell(f"no budget is given: {DEFAULT_EPOCHS:g} epochs of training in all")
    check_epochs(limit)
    check_trainer(trainer or {})
    if metric is not None:
        metric = _checked_metric(metric)
    splits = splits_of(datamodule, seed=seed)
    logged = metric[0] if metric else None
    subject = subject_of(model, datamodule, splits, task=task, module=module, logged=logged)
    quality = _quality(subject, datamodule, splits, metric)
    quality.check_trained(subject, splits)
    doubt = too_few(splits.samples["confirm"], needs.max_drop) if needs.max_drop is not None else None
    if doubt is not None:
        tell(doubt)
    place = Path("runs") / "auto" / time.strftime("%Y%m%d-%H%M%S") if folder is None else Path(folder)
    made_of = _made_of(subject, datamodule, needs, limit, quality, seed)
    search = Search(subject, quality, datamodule, splits, needs, limit, seed=seed, trainer=trainer or {}, tell=tell)
    with Storage(place, made_of) as storage, _signals():
        try:
            return search.run(storage)
        except (KeyboardInterrupt, Preempted):
            search.stop()
            raise


def _signals() -> Any:
    """Take signals as a flag, unless the command line does so already."""
    from contextlib import nullcontext

    return nullcontext() if signals.is_armed() else signals.armed()


def _quality(subject: Subject, data: L.LightningDataModule, splits: Splits, metric: tuple[str, str] | None) -> Quality:
    if metric is not None:
        return ByName(subject, data, splits, metric[0], metric[1] == "min")
    assert subject.task is not None
    return ByTask(subject.task)


def _checked_metric(metric: Any) -> tuple[str, str]:
    good = isinstance(metric, tuple | list) and len(metric) == 2 and isinstance(metric[0], str)
    if not good or metric[1] not in ("max", "min"):
        raise UserError(
            f'metric={metric!r}: expected a name that validation_step logs and its direction, as ("val_acc", "max")'
        )
    return metric[0], metric[1]


def _made_of(subject: Subject, data: Any, needs: Needs, limit: Budget, quality: Quality, seed: int) -> dict[str, Any]:
    return {
        "model": fingerprint(subject.network),
        "data": getattr(data, "fingerprint", None),
        "metric": quality.metric,
        "needs": str(needs),
        "budget": asdict(limit),
        "seed": seed,
    }
