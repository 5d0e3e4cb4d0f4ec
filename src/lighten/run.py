"""The story of one run: a line a step, from a checked recipe to a measured int8 file and its report."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import nn

from lighten.data import build_data
from lighten.delivery.artifacts import read_json, write_json
from lighten.delivery.card import write_card
from lighten.delivery.export import export_run
from lighten.delivery.extras import require
from lighten.delivery.folder import CONFIG, load, save
from lighten.delivery.measure import measure_run
from lighten.delivery.report import write_report
from lighten.delivery.student import FIT, SENSITIVITY, first_samples, shrink_run
from lighten.delivery.table import closing_table
from lighten.distillation.cache import TeacherCache
from lighten.distillation.initialise import student_from_teacher
from lighten.distillation.layers import matches_of
from lighten.distillation.match import Match
from lighten.distillation.module import DistillationModule
from lighten.distillation.preflight import preflight
from lighten.distillation.teacher import fingerprint
from lighten.distillation.terms import FEATURES
from lighten.errors import UserError
from lighten.example import as_call, example_of, split_batch
from lighten.models import build_model
from lighten.models.pretrained import resolve
from lighten.narrow import narrow
from lighten.pruning.callback import Prune
from lighten.pruning.decide import decide, plan_pruning, settle, study
from lighten.pruning.latency import predict
from lighten.pruning.plan import Plan
from lighten.pruning.settings import Settings
from lighten.quantization.callback import Quantize
from lighten.quantization.insert import quantizable, quantize_
from lighten.quantization.sensitivity import find_float_layers
from lighten.quantization.table import Row, quantization_rows
from lighten.recipe import FROM_TEACHER, Fit, Optimizer, Recipe, checkpoints
from lighten.run_folder import open_folder
from lighten.schedule import value_at
from lighten.training.checkpoint import latest_good
from lighten.training.fit import leave_processes, make_trainer, resolve_precision
from lighten.training.loggers import make_logger
from lighten.training.optimizer import OptimizerSettings
from lighten.training.preempt import stop_between_steps
from lighten.training.reference import fingerprint_of, reference
from lighten.training.snapshot import Snapshot

DECIDES = (
    "accumulate_grad_batches", "devices", "gradient_clip_val", "limit_train_batches", "num_nodes", "precision",
    "sync_batchnorm",
)  # fmt: skip
"""Settings of the trainer that change what a reference model becomes."""


def run(recipe: Recipe) -> Path:
    """Train, compress, export, measure and report; return the run folder.

    The same recipe with the same ``id`` goes on where an earlier run was stopped.
    """
    console = Console(quiet=not _is_rank_zero())
    folder = open_folder(recipe)
    console.print(f"run {folder}")
    _seed(recipe)
    data: Any = build_data(
        recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, workers=recipe.workers, **recipe.data_options
    )
    logger = make_logger(recipe.logger, folder, config=asdict(recipe))
    _rehearse(recipe, data)
    teachers = _teachers(recipe, data, folder)
    student = _student(recipe, data, teachers)
    _preflight(recipe, data, student, teachers, console)
    _fit(recipe, data, student, teachers, folder, logger)
    leave_processes()
    if _is_rank_zero():
        _deliver(folder, console, task=data.task)
    return folder


def plan(recipe: Recipe) -> tuple[Plan, dict[str, tuple[float, float]]]:
    """Return what a run would prune, and each layer's milliseconds before and after; nothing is trained or written.

    The student has the weights of its checkpoint, or those that training starts from: scores, and with them which
    channels go, change while it trains.

    Raises:
        UserError: if the recipe does not prune, or what it asks for cannot be reached.
    """
    s = recipe.compress.prune
    if s.amount is None:
        raise UserError(f"recipe {recipe.name} does not prune; set compress.prune.amount")
    data: Any = build_data(
        recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, workers=0, **recipe.data_options
    )
    _seed(recipe)
    student = _untrained(recipe, data)
    settings = Settings(s.amount, score=s.score, scope=s.scope, target=s.target, align=s.align, rate_norm=s.rate_norm)
    structure = study(student, as_call(example_of(data.input_shape, 1)), exclude=s.exclude)
    calibration = [split_batch(batch)[0] for batch in _some_inputs(data)] if s.scope == "sensitivity" else None
    planned = decide(
        structure, student, settings, findings=settle(structure, student, settings, calibration=calibration)
    )
    return planned, predict(structure, [len(row.removed) for row in planned.groups])


def quantization_plan(recipe: Recipe) -> list[Row]:
    """Return what a run would quantize and what it would not; ranges are not known before training.

    Raises:
        UserError: if the recipe does not quantize through int8, or what it excludes cannot be.
    """
    s = recipe.compress.quantize
    if s.begin is None and s.mode != "static":
        raise UserError(f"recipe {recipe.name} does not go through int8; set compress.quantize.begin")
    data: Any = build_data(
        recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, workers=0, **recipe.data_options
    )
    student = _untrained(recipe, data)
    example = example_of(data.input_shape)
    quantize_(student, example_input=example, exclude=s.exclude, weight_bits=s.weight_bits)
    return quantization_rows(student)


def matched_layers(recipe: Recipe) -> dict[str, list[Match]]:
    """Return which layers of student and teacher a run would compare, by loss; nothing is trained.

    Raises:
        UserError: if they cannot be paired.
    """
    if recipe.teacher is None or not any(loss in FEATURES for loss in recipe.distil.losses):
        return {}
    data: Any = build_data(
        recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, workers=0, **recipe.data_options
    )
    teacher, losses = _untrained_teacher(recipe, data), [loss for loss in recipe.distil.losses if loss in FEATURES]
    return matches_of(losses, recipe.distil.layers, _untrained(recipe, data), teacher)


def _some_inputs(data: Any, samples: int = 128) -> list[Any]:
    data.setup("fit")
    return list(first_samples(data.train_dataloader(), samples))


def _rehearse(recipe: Recipe, data: Any) -> None:
    """Find on an untrained student what would stop the run after hours: names, amounts, an unfit checkpoint."""
    student = _untrained(recipe, data)
    _rehearse_distillation(recipe, data, student)
    example, prune, quantize = example_of(data.input_shape), recipe.compress.prune, recipe.compress.quantize
    if prune.amount is not None:
        scope, target = ("uniform", prune.target) if prune.scope == "sensitivity" else (prune.scope, prune.target)
        target = "macs" if target == "latency" else target  # what can be known before training
        plan_pruning(
            student, example, prune.amount, scope=scope, target=target, exclude=prune.exclude, align=prune.align
        )
    for target in recipe.delivery.targets:
        require(target)
    if quantize.begin is not None or quantize.mode == "static":
        quantize_(student, example_input=example, exclude=quantize.exclude, weight_bits=quantize.weight_bits)
    elif quantize.after_training:
        quantizable(student, quantize.exclude)


def _rehearse_distillation(recipe: Recipe, data: Any, student: nn.Module) -> None:
    if recipe.teacher is None:
        return
    if recipe.distil.cache and data.views is None:
        raise UserError(
            f"distil.cache=true: {recipe.data} shows another view of each sample in every epoch, which is never seen "
            "again; set data_options.views=4, or data_options.augment=false"
        )
    folders = checkpoints(recipe)
    teachers = [_given_teacher(recipe, data, folder) for folder in folders] or [_untrained_teacher(recipe, data)]
    module = _module(recipe, data, student, teachers)
    if module.layers is not None:
        module.layers.open(as_call(example_of(data.input_shape)))
        module.layers.close()


def _untrained_teacher(recipe: Recipe, data: Any) -> nn.Module:
    """Return the first teacher's shape, whatever its weights."""
    assert recipe.teacher is not None
    folders = checkpoints(recipe)
    return load(folders[0]) if folders else _build(recipe, data, recipe.teacher, recipe.teacher_options)


def _fit(
    recipe: Recipe,
    data: Any,
    student: nn.Module,
    teachers: list[nn.Module],
    folder: Path,
    logger: Logger | Literal[False],
) -> None:
    module = _module(recipe, data, student, teachers)
    config = _config(recipe, data)
    prune, quantize = _prune(recipe), _quantize(recipe, _left_in_float(recipe, data, student, folder))
    dense = Snapshot(
        folder / "dense", lambda _, path: save(_dense(student, recipe, data), path, **config), at=_dense_at(recipe)
    )
    settings = asdict(recipe.trainer)
    callbacks: list[L.Callback] = [dense, *([prune] if prune else []), *([quantize] if quantize else [])]
    trainer = make_trainer(
        folder=folder, stage="student", settings=settings, callbacks=callbacks, logger=logger, seed=recipe.seed,
        monitor=_monitor(data),
    )  # fmt: skip
    _write_fit(folder, recipe, student, config, quantize)
    resumed = latest_good(folder / "checkpoints")
    trainer.fit(module, data, ckpt_path=str(resumed) if resumed else None, weights_only=True)
    if not dense.path.exists() and dense.at == 1.0 and trainer.is_global_zero:  # killed between last save and end
        save(_dense(student, recipe, data), dense.path, **config)
    if logger:
        logger.finalize("success")


def _module(recipe: Recipe, data: Any, student: nn.Module, teachers: list[nn.Module]) -> DistillationModule:
    s = recipe.distil
    return DistillationModule(
        student,
        teachers or None,
        temperature=s.temperature,
        soft_weight=s.soft_weight if teachers else 0.0,
        losses=s.losses or None if teachers else None,
        loss_options=s.loss_options,
        layers=s.layers,
        task=data.task,
        teacher_weights=s.teacher_weights or None,
        teacher_precision=s.teacher_precision,
        compile_teacher=s.compile_teacher,
        cache=_cache(recipe, data, teachers),
        optimizer=_optimizer(recipe.optimizer),
        label_smoothing=recipe.optimizer.label_smoothing,
        num_classes=data.num_classes,
    )


def _cache(recipe: Recipe, data: Any, teachers: list[nn.Module]) -> TeacherCache | None:
    """Return where the teachers' answers are kept: a folder for all that they depend on, shared between runs."""
    s = recipe.distil
    if not s.cache or not teachers:
        return None
    data.keyed = True
    precision = s.teacher_precision or resolve_precision(recipe.trainer.precision, recipe.trainer.accelerator)
    known = fingerprint_of(
        teachers=[fingerprint(t) for t in teachers], weights=list(s.teacher_weights), data=data.fingerprint,
        precision=precision, seed=None if data.views == 1 else recipe.seed, dtype=s.cache_dtype, top_k=s.cache_top_k,
    )  # fmt: skip
    return TeacherCache(Path(recipe.runs) / "cache" / known[:24], dtype=s.cache_dtype, top_k=s.cache_top_k)


def _monitor(data: Any) -> str | None:
    return None if data.task == "regression" else "student/accuracy"


def _preflight(recipe: Recipe, data: Any, student: nn.Module, teachers: list[nn.Module], console: Console) -> None:
    """Look for what would make the fit worthless, on some hundred samples.

    Raises:
        UserError: on the first mistake; what is merely odd is printed.
    """
    if not recipe.distil.preflight or not teachers:
        return
    data.setup("fit")
    facts = _facts(recipe, data)
    text = hasattr(data, "tokenizer")
    findings = preflight(
        student, teachers[0], train=data.train_dataloader(), validation=data.val_dataloader(), task=data.task,
        num_classes=data.num_classes, class_names=data.class_names, tokenizer=data.tokenizer if text else None,
        temperature=value_at(recipe.distil.temperature, 0.0), losses=recipe.distil.losses or None,
        normalisation=None if text else (data.mean, data.std), **facts,
    )  # fmt: skip
    for finding in findings:
        if finding.severity == "warning":
            console.print(f"warning: {finding.message}", highlight=False, markup=False)
    errors = _of_all_ranks([finding.message for finding in findings if finding.severity == "error"])
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"preflight: {errors[0]}{more}; distil.preflight=false skips these checks")


def _of_all_ranks(messages: list[str]) -> list[str]:
    """Return the messages of every rank once: each looks at samples of its own, and all must stop together."""
    if not (dist.is_available() and dist.is_initialized()):
        return messages
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, messages)
    return list(dict.fromkeys(message for each in found for message in each))


def _facts(recipe: Recipe, data: Any) -> dict[str, Any]:
    """Return what is known of the first teacher: classes, inputs, tokenizer and accuracy that it was trained with."""
    folders, facts = checkpoints(recipe), {}
    if folders:
        folder = Path(folders[0])
        config = read_json(folder / CONFIG, made_by="lighten.save")
        facts = {"teacher_classes": tuple(config.get("classes", ())), "teacher_accuracy": _claim(folder)}
        if config.get("mean") and config.get("std"):
            facts["teacher_normalisation"] = (tuple(config["mean"]), tuple(config["std"]))
    source = folders[0] if folders else recipe.teacher_options.get("path")
    if hasattr(data, "tokenizer") and source is not None:
        facts["teacher_tokenizer"] = _tokenizer_of(source)
    return facts


def _claim(folder: Path) -> float | None:
    """Return the accuracy that a run measured for one of its model folders, ``None`` where there was no run."""
    role = {"teacher": "teacher", "dense": "student", "student": "compressed"}.get(folder.name)
    if role is None or not (folder.parent / "scores.json").exists():
        return None
    measured = read_json(folder.parent / "scores.json", made_by="lighten measure RUN")["models"][role]
    return None if measured is None else float(measured["accuracy"])


def _tokenizer_of(source: str) -> Any:
    """Return the tokenizer that lies beside a model, ``None`` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(source), trust_remote_code=False)
    except (OSError, ValueError):  # a folder of weights alone
        return None


def _deliver(folder: Path, console: Console, *, task: str) -> None:
    """Each step reads the folder and writes into it; each can be run again alone by ``lighten STEP RUN``."""
    with console.status("shrink"):
        student = shrink_run(folder)
    if task != "classification":  # what the scores compare are classes
        console.print(f"student {student}")
        return
    stop_between_steps()
    with console.status("export"):
        export_run(folder)
    stop_between_steps()
    with console.status("measure") as status:
        scores = measure_run(folder, say=lambda stage: status.update(f"measure {stage}"))
    write_card(folder)
    report = write_report(folder)
    console.print(closing_table(scores))
    console.print(f"report {report}")


def _teachers(recipe: Recipe, data: Any, folder: Path) -> list[nn.Module]:
    """Return the teachers; the first one's folder goes into the run folder, where it is measured."""
    if recipe.teacher is None:
        return []
    teachers = [_given_teacher(recipe, data, folder) for folder in checkpoints(recipe)]
    if not teachers and recipe.teacher_fit.max_epochs:
        fit = recipe.teacher_fit
        teachers = [_reference(recipe, data, "teacher", recipe.teacher, recipe.teacher_options, fit)]
    if not teachers:
        teachers = [_build(recipe, data, recipe.teacher, recipe.teacher_options)]
    if _is_rank_zero():
        save(teachers[0], folder / "teacher", **_config(recipe, data))
        if hasattr(data, "tokenizer"):
            data.tokenizer.save_pretrained(folder / "teacher")
    return teachers


def _given_teacher(recipe: Recipe, data: Any, folder: str) -> nn.Module:
    teacher = load(folder)
    classes = teacher.lighten_spec["num_classes"]  # type: ignore[index]
    if classes != data.num_classes:
        raise UserError(
            f"teacher_checkpoint={folder} gives {classes} classes, {recipe.data} has {data.num_classes}; "
            "choose a teacher of this task"
        )
    return teacher


def _given_student(recipe: Recipe, data: Any) -> nn.Module | None:
    if recipe.student_checkpoint is None:
        return None
    student = load(recipe.student_checkpoint)
    spec: Any = student.lighten_spec
    if spec["num_classes"] != data.num_classes:
        raise UserError(
            f"student_checkpoint={recipe.student_checkpoint} gives {spec['num_classes']} classes, {recipe.data} has "
            f"{data.num_classes}; choose a student of this task"
        )
    if hasattr(student, "lighten_plan") or hasattr(student, "lighten_quantization"):
        raise UserError(f"student_checkpoint={recipe.student_checkpoint} is compressed already; give a dense model")
    return student.train()


def _untrained(recipe: Recipe, data: Any) -> nn.Module:
    """Return a student of the shape that the fit will have, whatever its weights."""
    given = _given_student(recipe, data)
    if given is not None:
        return given
    if recipe.student == FROM_TEACHER:
        return _from_teacher(recipe, data, _untrained_teacher(recipe, data))
    return _build(recipe, data, recipe.student, recipe.student_options)


def _from_teacher(recipe: Recipe, data: Any, teacher: nn.Module) -> nn.Module:
    options = dict(recipe.student_options)
    width = options.pop("width", 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        student = student_from_teacher(teacher, **options)
        return narrow(student, width, example_of(data.input_shape)) if width != 1 else student


def _student(recipe: Recipe, data: Any, teachers: list[nn.Module]) -> nn.Module:
    given = _given_student(recipe, data)
    if given is not None:
        return given
    if recipe.student == FROM_TEACHER:
        return _from_teacher(recipe, data, teachers[0]).train()
    if recipe.student_fit.max_epochs:
        dense = _reference(recipe, data, "student", recipe.student, recipe.student_options, recipe.student_fit)
        return dense.train()
    return _build(recipe, data, recipe.student, recipe.student_options)


def _reference(recipe: Recipe, data: Any, role: str, name: str, options: Mapping[str, Any], fit: Fit) -> nn.Module:
    """Train a model on the labels alone, once: the next run with the same settings finds it."""
    known = fingerprint_of(
        model=name, options=dict(options), data=data.fingerprint, batch_size=recipe.batch_size, seed=recipe.seed,
        fit=asdict(fit), trainer={key: getattr(recipe.trainer, key) for key in DECIDES}, schema=2,
    )  # fmt: skip
    home = Path(recipe.runs) / "references"

    def train(model: nn.Module) -> None:
        module = DistillationModule(
            model, None, soft_weight=0.0, task=data.task, optimizer=_optimizer(fit.optimizer),
            label_smoothing=fit.optimizer.label_smoothing, num_classes=data.num_classes,
        )  # fmt: skip
        settings = {**asdict(recipe.trainer), "max_epochs": fit.max_epochs, "max_steps": -1}
        trainer = make_trainer(
            folder=home / f"{known}.fit", stage=role, settings=settings, seed=recipe.seed, logger=False,
            monitor=_monitor(data),
        )  # fmt: skip
        resumed = latest_good(home / f"{known}.fit" / "checkpoints")
        trainer.fit(module, data, ckpt_path=str(resumed) if resumed else None, weights_only=True)

    return reference(home, lambda: _build(recipe, data, name, options), train, known)


def _build(recipe: Recipe, data: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build_model(name, num_classes=data.num_classes, input_shape=data.input_shape, **options).train()
    return cast(Any, model).to(memory_format=torch.channels_last)  # faster on CPUs, and what tensor cores want


def _dense(student: nn.Module, recipe: Recipe, data: Any) -> nn.Module:
    """Return the student's weights in a model that no callback has touched."""
    spec: Any = student.lighten_spec
    clean = _build(recipe, data, spec["name"], spec["options"])
    state = student.state_dict()
    clean.load_state_dict({name: state[name] for name in clean.state_dict()})
    return clean


def _dense_at(recipe: Recipe) -> float:
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    begins = [prune.begin] if prune.amount is not None else []
    begins += [quantize.begin] if quantize.begin is not None else []
    return min(begins, default=1.0)


def _prune(recipe: Recipe) -> Prune | None:
    s = recipe.compress.prune
    if s.amount is None:
        return None
    return Prune(
        s.amount, score=s.score, begin=s.begin, end=s.end, scope=s.scope, exclude=s.exclude, schedule=s.schedule,
        soft=s.soft, target=s.target, align=s.align, rate_norm=s.rate_norm, module="student",
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

    The ranking is of the trained student, before the fit; a run that goes on reads it from its folder.
    """
    s = recipe.compress.quantize
    if s.begin is None or s.max_drop is None:
        return list(s.exclude)
    path = folder / SENSITIVITY
    if not path.exists():
        data.setup("fit")
        found = find_float_layers(
            student, first_samples(data.val_dataloader(), s.calibration), max_drop=s.max_drop,
            ranges="mse", weight_bits=s.weight_bits, exclude=s.exclude,
        )  # fmt: skip
        _write_sensitivity(path, found.as_json())
    layers = read_json(path, made_by="lighten train recipe=…")["layers"]
    return [*s.exclude, *(layer["name"] for layer in layers if layer["kept"])]


@rank_zero_only
def _write_sensitivity(path: Path, found: Mapping[str, Any]) -> None:
    write_json(path, found)


def _optimizer(settings: Optimizer) -> OptimizerSettings:
    values = asdict(settings)
    values.pop("label_smoothing")
    return OptimizerSettings(**values)


def _config(recipe: Recipe, data: Any) -> dict[str, Any]:
    """Return what a model folder says beside the model itself."""
    return {
        "data": {"name": data.name, "options": dict(data.options), "fingerprint": data.fingerprint},
        "classes": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
        "training": {"recipe": recipe.name, "seed": recipe.seed, "epochs": recipe.trainer.max_epochs},
    }


@rank_zero_only
def _write_fit(
    folder: Path, recipe: Recipe, student: nn.Module, config: Mapping[str, Any], quantize: Quantize | None
) -> None:
    s = recipe.compress.quantize
    after = {"mode": s.mode, "exclude": s.exclude, "weight_bits": s.weight_bits, "ranges": s.resolved_ranges,
             "calibration": s.calibration, "max_drop": s.max_drop}  # fmt: skip
    spec = dict(student.lighten_spec)  # type: ignore[arg-type]
    write_json(
        folder / FIT,
        {
            "schema": 1,
            "config": {"schema": 1, "model": spec, **config},
            "quantization": dict(quantize.settings) if quantize else None,
            "after_training": after if s.after_training else None,
            "targets": list(recipe.delivery.targets),
            "opset": recipe.delivery.opset,
        },
    )


def _seed(recipe: Recipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.seed_everything(recipe.seed, workers=True, verbose=False)


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0
