"""Trial: one setting tried, from a network to a measured file in a folder of its own."""

import inspect
import io
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lighten.delivery.export.prepare import in_float
from lighten.delivery.export.targets import export
from lighten.delivery.folders.model import WEIGHTS, cut, save
from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.measure.precision import faster_form
from lighten.errors import UserError
from lighten.pruning.callback import Prune
from lighten.pruning.damage import DamageCurve
from lighten.quantization.callback import Quantize
from lighten.quantization.post_training import quantize_post_training
from lighten.quantization.settings import DYNAMIC, STATIC
from lighten.search.choose import Setting
from lighten.search.needs import Needs
from lighten.search.quality import Quality
from lighten.search.splits import Splits
from lighten.search.subject import GuidedData, Subject
from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer
from lighten.utils.checks import check_one_of
from lighten.utils.clone import clone
from lighten.utils.targets import TARGETS

FILE, STUDENT, ROW = "student.onnx", "student", "trial.json"
PRUNE_END, QUANTIZE_BEGIN, FREEZE = 0.5, 0.6, 0.9
"""Shares of a fine-tune: the ramp ends, int8 begins once the pruned network has settled, ranges stand still."""
PRUNING = 128
"""Samples that sensitivities of a fine-tune are measured on, as ``Prune`` takes by itself."""

DECIDED = (
    "callbacks", "logger", "plugins", "max_epochs", "max_steps", "min_epochs", "min_steps", "max_time", "fast_dev_run",
)  # fmt: skip
"""Arguments of the Trainer that are a search's own."""


class HopelessError(Exception):
    """A trial is given up before its end: what it would come to is known well enough."""


OnEpoch = Callable[[int, float, float], str | None]
"""From epochs done, the metric on the guide part and the epoch's seconds to why it is hopeless, or ``None``."""


def run_trial(
    setting: Setting,
    *,
    subject: Subject,
    quality: Quality,
    data: L.LightningDataModule,
    splits: Splits,
    folder: Path,
    needs: Needs,
    original: Path,
    warm: nn.Module | None = None,
    pruned: bool = False,
    curves: Mapping[str, DamageCurve] | None = None,
    on_epoch: OnEpoch | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Try a setting; return ``measured``, ``seconds`` by stage and ``epochs``.

    The folder then has the model folder ``student/``, ``student.onnx``, ``scores.json`` and, after a fine-tune,
    ``history.jsonl``. What of it a killed trial has finished is not done again, and a fit resumes in mid-epoch.

    Args:
        setting: what is done.
        subject: to what.
        quality: how good files are.
        data: is trained on.
        splits: of it.
        folder: of the trial.
        needs: under which conditions latency is measured.
        original: the float original's file, measured in turn with the trial's.
        warm: what to begin with, pruned or not, in float; by default the original.
        pruned: whether ``warm`` has lost all of the amount already.
        curves: the damage of cuts, by group, as the look has measured it; else each pruning measures it.
        on_epoch: asked after each epoch whether to go on.
        trainer: further arguments of Lightning's Trainer.
        seed: of the fit.

    Raises:
        HopelessError: if ``on_epoch`` says so.
        UserError: if the network cannot be pruned, quantized or exported so.
    """
    begun, seconds = time.monotonic(), {"fit": 0.0, "export": 0.0, "measure": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / STUDENT / WEIGHTS).exists():
        start = clone(warm if warm is not None else subject.network)
        if setting.epochs:
            student = _fit(setting, subject, data, splits, folder, start, pruned, curves, on_epoch, trainer or {}, seed)
        else:
            student = _after_training(setting, subject, start)
        save(student.eval(), folder / STUDENT, **subject.about)
        seconds["fit"] = time.monotonic() - begun
    begun = time.monotonic()
    file = _export(subject, folder, needs)
    seconds["export"] = time.monotonic() - begun
    begun = time.monotonic()
    measured = quality.measure(folder, original, file, splits.select, needs, confirming=splits.samples["confirm"])
    seconds["measure"] = time.monotonic() - begun
    return {"measured": {**measured, "split": "select"}, "seconds": seconds, "epochs": setting.epochs}


def export_files(subject: Subject, model: nn.Module, path: Path, runtime: str) -> Path:
    """Write the ONNX file of a model, and that of another runtime where one is asked for, which is returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not path.exists():
            export(model, subject.example, path)
        other = path.with_suffix(TARGETS[runtime].suffix)
        if not other.exists():
            export(model, subject.example, other, target=runtime)
    return other


def _export(subject: Subject, folder: Path, needs: Needs) -> Path:
    """Write the file of a trial's network, which computes in float32 with its int8 weights where that is faster."""
    model = subject.load(folder / STUDENT)
    file = export_files(subject, model, folder / FILE, needs.runtime)
    if needs.runtime != "onnx":
        return file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faster = faster_form(model, subject.example, file, batch=needs.batch, threads=needs.threads)
    if faster is not model:
        file.unlink()  # a search that is killed here then finds no file of another network
        save(faster.eval(), folder / STUDENT, **subject.about)
        export_files(subject, faster, file, needs.runtime)
    return file


def warm_start(subject: Subject, folder: Path) -> nn.Module:
    """Return what a finished trial has come to, in float, cut: what the next one begins with."""
    return in_float(subject.load(folder / STUDENT))


def _after_training(setting: Setting, subject: Subject, model: nn.Module) -> nn.Module:
    if setting.quantize not in (STATIC, DYNAMIC):
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = subject.inputs if setting.quantize == STATIC else None
        return quantize_post_training(
            model, batches, mode=setting.quantize, exclude=setting.exclude, batch=subject.roles
        )


def check_trainer(given: Mapping[str, Any]) -> None:
    """Check arguments of the Trainer of all fine-tunes, before the first.

    Raises:
        UserError: if it knows one of them not, or the search decides it.
    """
    known = [name for name in inspect.signature(L.Trainer).parameters if name not in DECIDED]
    for name in given:
        if name in DECIDED:
            raise UserError(f"trainer has {name!r}, which a search decides itself; leave it out")
        check_one_of("trainer", name, [*known, "timeout"])


def _fit(
    setting: Setting, subject: Subject, data: L.LightningDataModule, splits: Splits, folder: Path, start: nn.Module,
    pruned: bool, curves: Mapping[str, DamageCurve] | None, on_epoch: OnEpoch | None, trainer: Mapping[str, Any],
    seed: int,
) -> nn.Module:  # fmt: skip
    module, part, callbacks = subject.learner(start.train(), lr=setting.lr, distil=setting.distil)
    name = part or None
    prune = None
    if setting.amount and not pruned:
        calls = [kwargs if kwargs and not args else args for args, kwargs in subject.some(PRUNING)]
        prune = _QuietPrune(
            setting.amount, score=setting.score, scope=setting.scope, target=setting.target, align=setting.align,
            of="original", begin=0.0, end=PRUNE_END, calibration=calls, curves=curves, module=name,
            live=True,
        )  # fmt: skip
        callbacks.append(prune)
    if setting.quantize == "qat":
        begin = QUANTIZE_BEGIN if setting.amount else 0.3
        callbacks.append(Quantize(begin=begin, freeze=FREEZE, exclude=setting.exclude, module=name))
    if on_epoch is not None:
        callbacks.append(_Epochs(on_epoch, subject))
    epochs = max(1, round(setting.epochs))
    settings: dict[str, Any] = {
        "max_epochs": epochs, "gradient_clip_val": 1.0, "enable_progress_bar": False, "devices": 1,
        **({"limit_train_batches": setting.epochs} if setting.epochs < 1 else {}), **trainer,
    }  # fmt: skip
    if subject.owner is not None and not module.automatic_optimization:
        settings.pop("gradient_clip_val")
    fit = make_trainer(folder=folder, stage="trial", settings=settings, callbacks=callbacks, monitor=None, seed=seed)
    resumed = latest_good(folder / "checkpoints")
    with warnings.catch_warnings(), _interrupts():
        warnings.simplefilter("ignore")
        fit.fit(
            module, datamodule=GuidedData(data, splits), ckpt_path=str(resumed) if resumed else None, weights_only=True
        )
    student = module.get_submodule(part).cpu().eval()
    if isinstance(student, L.LightningModule):
        student._trainer = None
    return cut(student, prune.plan) if prune is not None and prune.plan is not None else student


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C be what it is: the Trainer makes an exit of it, and leaves the key dead."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class _QuietPrune(Prune):
    """Prunes without printing what it will do: the search tells that itself."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with redirect_stdout(io.StringIO()):
            super().setup(trainer, pl_module, stage)


class _Epochs(L.Callback):
    """Asks after each epoch's validation whether to go on."""

    def __init__(self, ask: OnEpoch, subject: Subject) -> None:
        self._ask, self._subject, self._begun = ask, subject, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = self._subject.guided_metric(trainer)
        taken = time.monotonic() - self._begun
        why = self._ask(trainer.current_epoch + 1, value, taken) if value is not None else None
        if why:
            raise HopelessError(why)


def read_row(folder: Path) -> dict[str, Any] | None:
    """Return what a trial has come to, ``None`` where it is not finished."""
    return read_json(folder / ROW, made_by="lighten.compress") if (folder / ROW).exists() else None


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Write ``trial.json``, the last file of a trial."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ROW, row)


def failure_of(error: BaseException) -> str:
    """Return why a trial failed, in a line."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
