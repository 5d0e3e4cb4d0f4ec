"""One run: from a checked recipe to a measured int8 file and its report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import nn

from lighten.delivery.export.targets import export_run
from lighten.delivery.folders.model import save
from lighten.delivery.folders.provenance import versions
from lighten.delivery.folders.run import read_json, write_json
from lighten.delivery.folders.student import FIT, SENSITIVITY, first_samples, shrink_run
from lighten.delivery.measure.measure import measure_run
from lighten.delivery.measure.precision import choose_precision
from lighten.delivery.progress import progress
from lighten.delivery.report.card import write_card
from lighten.delivery.report.page import write_report
from lighten.delivery.report.publish import publish
from lighten.delivery.report.table import closing_table
from lighten.errors import NeedNotMetError, UserError
from lighten.pruning.callback import Prune
from lighten.quantization.callback import Quantize
from lighten.quantization.sensitivity import find_float_layers
from lighten.recipe.schema import CHANGED, Recipe, settings_of
from lighten.run.build import build, config_of, data_of, module_of, monitor_of, seed, student_of, teachers_of
from lighten.run.choose import describe_choice
from lighten.run.dry_run import dry_run, run_preflight
from lighten.run.folder import keep_recipe, open_folder
from lighten.run.search import check_needs, search_run
from lighten.run.threads import settle_threads
from lighten.tasks import task_of
from lighten.training.checkpoint import latest_good
from lighten.training.failure import failure_kept
from lighten.training.fit import leave_processes, make_trainer
from lighten.training.lineage import Lineage
from lighten.training.loggers import ending, make_logger
from lighten.training.preempt import stop_between_steps
from lighten.training.rank import is_rank_zero
from lighten.training.snapshot import Snapshot
from lighten.utils.compression import record_of
from lighten.utils.files import disk_errors_as_user_errors, remove_stale, suppress_thread_disk_errors


def run(recipe: Recipe, *, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Train, compress, export, measure and report; return the run folder.

    The same recipe with the same ``id`` resumes an earlier run that was stopped.

    Args:
        recipe: checked.
        callbacks: of the fit, beside those that the recipe asks for.

    Raises:
        RecipeError: if the recipe cannot be run, or the folder holds a run of another one.
        NeedNotMetError: if a search ends without meeting its need; all of it is saved.
        UserError: if something else that one line explains stops it.
        DiskError: if that is a disk: what was saved before is kept.
    """
    check_needs(recipe)
    folder, missed = open_folder(recipe), None
    with failure_kept(folder), disk_errors_as_user_errors(folder), suppress_thread_disk_errors():
        if is_rank_zero():
            remove_stale(folder, deep=True)
        if recipe.searches:
            missed = search_run(recipe, folder)
        else:
            _run(recipe, folder, callbacks)
    if missed is not None:  # no failure: all of it is there
        raise NeedNotMetError(missed)
    return folder


def _run(recipe: Recipe, folder: Path, callbacks: Sequence[L.Callback]) -> None:
    console = Console(quiet=not is_rank_zero())
    console.print(f"run {folder}")
    seed(recipe)
    if is_rank_zero() and (line := settle_threads(recipe, folder)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    data = data_of(recipe, workers=recipe.workers)
    logger = make_logger(recipe.logger, folder, config=asdict(recipe))
    with ending(logger):
        dry_run(recipe, data)
        if choice := describe_choice(recipe, data):
            console.print(choice, highlight=False, markup=False, soft_wrap=True)
        teachers = teachers_of(recipe, data, folder)
        student = student_of(recipe, data, teachers, folder)
        run_preflight(recipe, data, student, teachers, console)
        _fit(recipe, data, student, teachers, folder, logger, callbacks)
        leave_processes()
        if is_rank_zero():
            _deliver(folder, console)
            publish(logger, folder)


def _fit(
    recipe: Recipe,
    data: Any,
    student: nn.Module,
    teachers: list[nn.Module],
    folder: Path,
    logger: Logger | Literal[False],
    more: Sequence[L.Callback],
) -> None:
    module = module_of(recipe, data, student, teachers)
    config = config_of(recipe, data, module.teacher.fingerprint if module.teacher else None)
    prune, quantize = _prune(recipe), _quantize(recipe, _left_in_float(recipe, data, student, folder))
    dense = Snapshot(
        folder / "dense", lambda _, path: save(_dense(student, recipe, data), path, **config), at=_dense_at(recipe)
    )
    settings = asdict(recipe.trainer)
    changed = recipe.resume == CHANGED
    accept = partial(keep_recipe, recipe, folder) if changed else None
    lineage = Lineage(settings_of(recipe), _made_of(data, module), accept=accept)
    callbacks: list[L.Callback] = [
        lineage,
        dense,
        *([prune] if prune else []),
        *([quantize] if quantize else []),
        *more,
    ]
    trainer = make_trainer(
        folder=folder, stage="student", settings=settings, callbacks=callbacks, logger=logger, seed=recipe.seed,
        on_bad_batch=recipe.on_bad_batch, **monitor_of(data),
    )  # fmt: skip
    _write_fit(folder, recipe, student, config, quantize, teachers=len(teachers))
    resumed = latest_good(folder / "checkpoints")
    try:
        trainer.fit(module, data, ckpt_path=str(resumed) if resumed else None, weights_only=True)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        ours = resumed is None or (isinstance(error, RuntimeError) and "loading state_dict" not in str(error))
        if lineage.begun or isinstance(error, UserError) or (ours and not changed):
            raise
        what = "the changed recipe" if changed else "this run"
        raise UserError(f"{resumed} does not fit {what} ({error!s:.99}…); give another id") from error
    if changed:  # also where nothing is left to train: it counts for what follows
        keep_recipe(recipe, folder)
    if not dense.path.exists() and dense.at == 1.0 and trainer.is_global_zero:  # killed between last save and end
        save(_dense(student, recipe, data), dense.path, **config)
    if logger:
        logger.finalize("success")


def _deliver(folder: Path, console: Console) -> None:
    """Each step reads the folder and writes into it; each can be run again alone by ``lighten STEP RUN``."""
    with console.status("shrink"):
        shrink_run(folder)
    stop_between_steps()
    with progress("export", console) as on_progress:
        export_run(folder, on_progress=on_progress)
    stop_between_steps()
    with console.status("precision"):
        chosen = choose_precision(folder)
    if chosen:
        console.print(f"precision: {chosen}", highlight=False, markup=False, soft_wrap=True)
    stop_between_steps()
    with progress("measure", console, ticks=False) as on_progress:
        scores = measure_run(folder, on_progress=on_progress)
    write_card(folder)
    report = write_report(folder)
    console.print(closing_table(scores))
    console.print(f"report {report}")


def _dense(student: nn.Module, recipe: Recipe, data: Any) -> nn.Module:
    """Return the student's weights in a model that no callback has touched."""
    spec = record_of(student).spec
    clean = build(recipe, data, spec["name"], spec["options"])
    state = student.state_dict()
    clean.load_state_dict({name: state[name] for name in clean.state_dict()})
    return clean


def _dense_at(recipe: Recipe) -> float:
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    begins = [prune.begin] if prune.amount is not None else []
    begins += [quantize.begin] if quantize.begin is not None else []
    return min(begins, default=1.0)


def _made_of(data: Any, module: Any) -> dict[str, str | None]:
    return {"data": data.fingerprint, "teacher": None if module.teacher is None else module.teacher.fingerprint}


def _prune(recipe: Recipe) -> Prune | None:
    s = recipe.compress.prune
    if s.amount is None:
        return None
    return Prune(
        s.amount, score=s.score, begin=s.begin, end=s.end, scope=s.scope, exclude=s.exclude, schedule=s.schedule,
        soft=s.soft, target=s.target, align=s.align, rate_norm=s.rate_norm, module="student",
        live=s.live, cuts=s.cuts,
    )  # fmt: skip


def _quantize(recipe: Recipe, exclude: list[str]) -> Quantize | None:
    s = recipe.compress.quantize
    if s.begin is None:
        return None
    return Quantize(
        begin=s.begin, freeze=s.freeze, ranges=s.resolved_ranges, weight_bits=s.weight_bits, exclude=exclude,
        module="student",
    )  # fmt: skip


def _left_in_float(recipe: Recipe, data: Any, student: nn.Module, folder: Path) -> list[str]:
    """Return which layers stay in floating point while training: those excluded, and those that ``max_drop`` keeps.

    The ranking is of the trained student, before the fit; a resumed run reads it from its folder.
    """
    s = recipe.compress.quantize
    if s.begin is None or s.max_drop is None:
        return list(s.exclude)
    path = folder / SENSITIVITY
    if not path.exists():
        data.setup("fit")
        found = find_float_layers(
            student, first_samples(data.val_dataloader(), s.calibration), max_drop=s.max_drop,
            ranges="mse", weight_bits=s.weight_bits, exclude=s.exclude, task=task_of(data.task),
        )  # fmt: skip
        _write_sensitivity(path, found.as_json())
    layers = read_json(path, made_by="lighten train recipe=…")["layers"]
    return [*s.exclude, *(layer["name"] for layer in layers if layer["kept"])]


@rank_zero_only
def _write_sensitivity(path: Path, found: Mapping[str, Any]) -> None:
    write_json(path, found)


@rank_zero_only
def _write_fit(
    folder: Path,
    recipe: Recipe,
    student: nn.Module,
    config: Mapping[str, Any],
    quantize: Quantize | None,
    *,
    teachers: int,
) -> None:
    s = recipe.compress.quantize
    after = {"mode": s.mode, "exclude": s.exclude, "weight_bits": s.weight_bits, "ranges": s.resolved_ranges,
             "calibration": s.calibration, "max_drop": s.max_drop}  # fmt: skip
    spec = dict(record_of(student).spec)
    write_json(
        folder / FIT,
        {
            "schema": 1,
            "config": {"schema": 1, "model": spec, **config},
            "quantization": dict(quantize.settings) if quantize else None,
            "after_training": after if s.after_training else None,
            "targets": list(recipe.delivery.targets),
            "opset": recipe.delivery.opset,
            "precision": recipe.delivery.precision,
            "versions": versions(),
            "teachers": teachers,
        },
    )
