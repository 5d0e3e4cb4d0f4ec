"""Build data, teachers, student and module of a recipe."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import nn

from lighten.data import build_data
from lighten.delivery.folders.about import about_data
from lighten.delivery.folders.model import CONFIG, load, save
from lighten.delivery.folders.provenance import lineage_of
from lighten.delivery.folders.run import read_json
from lighten.distillation.cache import TeacherCache
from lighten.distillation.initialise import student_from_teacher
from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.models import build_model
from lighten.pruning.narrow import shrink_feed_forward
from lighten.recipe.checks import checkpoints
from lighten.recipe.schema import CHANGED, FROM_TEACHER, Fit, Optimizer, Recipe, settings_of
from lighten.run.choose import chosen
from lighten.tasks import task_of
from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings
from lighten.training.rank import is_rank_zero
from lighten.training.reference import agreed, reference
from lighten.utils.compression import record_of
from lighten.utils.files import remove_stale
from lighten.utils.fingerprint import fingerprint_of
from lighten.utils.inputs import example_of
from lighten.utils.layout import best_layout

DECIDES = (
    "accumulate_grad_batches", "devices", "gradient_clip_val", "limit_train_batches", "num_nodes", "precision",
    "sync_batchnorm",
)  # fmt: skip
"""Settings of the trainer that change what a reference model becomes."""


def data_of(recipe: Recipe, *, workers: int) -> Any:
    """Return the data module that a recipe names; nothing is read yet."""
    return build_data(
        recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, workers=workers, **recipe.data_options
    )


def teachers_of(recipe: Recipe, data: Any, folder: Path) -> list[nn.Module]:
    """Return the teachers; the first one goes into the run folder, where it is measured and a changed run finds it."""
    if recipe.teacher is None:
        return []
    own = folder / "teacher"
    kept = [str(own)] if recipe.resume == CHANGED and (own / CONFIG).exists() else []
    teachers = [given_teacher(recipe, data, given) for given in checkpoints(recipe) or kept]
    if not teachers and recipe.teacher_fit.max_epochs:
        teachers = [_reference(recipe, data, folder, "teacher", *chosen(recipe, data, "teacher"), recipe.teacher_fit)]
    if not teachers:
        teachers = [build(recipe, data, *chosen(recipe, data, "teacher"))]
    if is_rank_zero():
        save(teachers[0], folder / "teacher", **config_of(recipe, data))
        if hasattr(data, "tokenizer"):
            data.tokenizer.save_pretrained(folder / "teacher")
    return teachers


def student_of(recipe: Recipe, data: Any, teachers: list[nn.Module], folder: Path) -> nn.Module:
    """Return the student that the fit begins with: given, made of its teacher, trained alone first, or fresh."""
    given = _given_student(recipe, data)
    if given is not None:
        return given
    if recipe.student == FROM_TEACHER:
        return _from_teacher(recipe, data, teachers[0]).train()
    if recipe.student_fit.max_epochs:
        name, options = chosen(recipe, data, "student")
        return _reference(recipe, data, folder, "student", name, options, recipe.student_fit).train()
    return build(recipe, data, *chosen(recipe, data, "student"))


def untrained_teacher(recipe: Recipe, data: Any) -> nn.Module:
    """Return the first teacher's shape, whatever its weights."""
    assert recipe.teacher is not None
    folders = checkpoints(recipe)
    return load(folders[0]) if folders else build(recipe, data, *chosen(recipe, data, "teacher"))


def untrained_student(recipe: Recipe, data: Any) -> nn.Module:
    """Return a student of the shape that the fit will have, whatever its weights."""
    given = _given_student(recipe, data)
    if given is not None:
        return given
    if recipe.student == FROM_TEACHER:
        return _from_teacher(recipe, data, untrained_teacher(recipe, data))
    return build(recipe, data, *chosen(recipe, data, "student"))


def given_teacher(recipe: Recipe, data: Any, folder: str) -> nn.Module:
    """Return the trained teacher of a folder.

    Raises:
        UserError: if it cannot be read, answers something else than the data's task, or another number of classes.
    """
    teacher = load(folder)
    taught = read_json(Path(folder) / CONFIG, made_by="lighten.save").get("task")
    problem = task_of(data.task).misunderstands(task_of(taught)) if taught is not None else None
    if problem is not None:
        raise UserError(f"teacher_checkpoint={folder} {problem}; choose a teacher of this task")
    classes = record_of(teacher).spec["num_classes"]
    if classes != data.num_classes:
        raise UserError(
            f"teacher_checkpoint={folder} gives {classes} {task_of(data.task).outputs_are}, {recipe.data} has "
            f"{data.num_classes}; choose a teacher of this task"
        )
    return teacher


def module_of(recipe: Recipe, data: Any, student: nn.Module, teachers: list[nn.Module]) -> DistillationModule:
    """Return what trains ``student``, on its teachers' answers where there are teachers."""
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


def monitor_of(data: Any) -> dict[str, Any]:
    """Return the metric whose best checkpoint is kept, and which way is better, as ``make_trainer`` takes them."""
    task = task_of(data.task)
    return {"monitor": f"student/{task.metric}", "mode": "min" if task.lower_is_better else "max"}


def build(recipe: Recipe, data: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a model by name, in train mode, with the weights that the recipe's seed gives."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build_model(name, num_classes=data.num_classes, input_shape=data.input_shape, **options).train()
    return cast(Any, model).to(memory_format=best_layout(model))


def config_of(recipe: Recipe, data: Any, teacher: str | None = None) -> dict[str, Any]:
    """Return what a model folder says beside the model itself; ``teacher`` is the fingerprint of who taught it."""
    return {
        "made_of": lineage_of(fingerprint_of(**settings_of(recipe)), teacher, data.fingerprint),
        **about_data(data),
        "training": {"recipe": recipe.name, "seed": recipe.seed, "epochs": recipe.trainer.max_epochs},
    }


def seed(recipe: Recipe) -> None:
    """Seed everything that draws from global random states."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.seed_everything(recipe.seed, workers=True, verbose=False)


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
    folder = Path(recipe.runs) / "cache" / known[:24]
    remove_stale(folder, age=3600)
    return TeacherCache(folder, dtype=s.cache_dtype, top_k=s.cache_top_k)


def _given_student(recipe: Recipe, data: Any) -> nn.Module | None:
    if recipe.student_checkpoint is None:
        return None
    student = load(recipe.student_checkpoint)
    record = record_of(student)
    spec = record.spec
    if spec["num_classes"] != data.num_classes:
        raise UserError(
            f"student_checkpoint={recipe.student_checkpoint} gives {spec['num_classes']} "
            f"{task_of(data.task).outputs_are}, {recipe.data} has {data.num_classes}; choose a student of this task"
        )
    if record.plan is not None or record.quantization is not None:
        raise UserError(f"student_checkpoint={recipe.student_checkpoint} is compressed already; give a dense model")
    return student.train()


def _from_teacher(recipe: Recipe, data: Any, teacher: nn.Module) -> nn.Module:
    options = dict(recipe.student_options)
    width = options.pop("width", 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        student = student_from_teacher(teacher, **options)
        return shrink_feed_forward(student, width, example_of(data.input_shape)) if width != 1 else student


def _reference(
    recipe: Recipe, data: Any, folder: Path, role: str, name: str, options: Mapping[str, Any], fit: Fit
) -> nn.Module:
    """Train a model on the labels alone, once: the next run with the same settings finds it.

    Until then it is this run's own, in ``references/<fingerprint>.<recipe>-<id>.fit``.
    """
    known = fingerprint_of(
        model=name, options=dict(options), data=data.fingerprint, batch_size=recipe.batch_size, seed=recipe.seed,
        fit=asdict(fit), trainer={key: getattr(recipe.trainer, key) for key in DECIDES}, schema=2,
        **({"on_bad_batch": "skip"} if recipe.on_bad_batch == "skip" else {}),
    )  # fmt: skip
    home = Path(recipe.runs) / "references"
    work = home / f"{known}.{folder.parent.name}-{folder.name}.fit"
    settings = {**asdict(recipe.trainer), "max_epochs": fit.max_epochs, "max_steps": -1}

    def train(model: nn.Module) -> None:
        module = DistillationModule(
            model, None, soft_weight=0.0, task=data.task, optimizer=_optimizer(fit.optimizer),
            label_smoothing=fit.optimizer.label_smoothing, num_classes=data.num_classes,
        )  # fmt: skip
        trainer = make_trainer(
            folder=work, stage=role, settings=settings, seed=recipe.seed, logger=False,
            on_bad_batch=recipe.on_bad_batch, **monitor_of(data),
        )  # fmt: skip
        resumed = latest_good(work / "checkpoints")
        trainer.fit(module, data, ckpt_path=str(resumed) if resumed else None, weights_only=True)

    def agree(found: bool) -> bool:
        trainer = make_trainer(folder=folder, stage=role, settings=settings, seed=recipe.seed, logger=False)
        return found if trainer.world_size == 1 else agreed(found, trainer)

    return reference(home, lambda: build(recipe, data, name, options), train, known, work=work, agree=agree)


def _optimizer(settings: Optimizer) -> OptimizerSettings:
    values = asdict(settings)
    values.pop("label_smoothing")
    return OptimizerSettings(**values)
