"""Dry run: what a recipe would do and what would stop it, found before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from torch import nn

from lighten.delivery.folders.model import CONFIG
from lighten.delivery.folders.run import read_json
from lighten.delivery.folders.student import first_samples
from lighten.delivery.runtimes.packages import require
from lighten.distillation.layers import matches_of
from lighten.distillation.match import Match
from lighten.distillation.preflight import Problem, preflight, too_many_words
from lighten.distillation.settings import FEATURES
from lighten.errors import UserError
from lighten.models.pretrained import resolve
from lighten.pruning.latency import predict
from lighten.pruning.plan import Plan
from lighten.pruning.planner import make_plan, plan_pruning, trace_structure
from lighten.pruning.settings import Settings
from lighten.pruning.widths import allocate_widths
from lighten.quantization.insert import quantize_
from lighten.quantization.select import quantizable
from lighten.quantization.table import Row, quantization_rows
from lighten.recipe.checks import checkpoints
from lighten.recipe.schema import Recipe
from lighten.run.build import data_of, given_teacher, module_of, seed, untrained_student, untrained_teacher
from lighten.run.fit_time import FitTime, predict_fit
from lighten.schedule import value_at
from lighten.tasks import task_of
from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import Call, as_call, example_of

_PREFLIGHT = 8.0
"""Seconds for looking at the data and all teachers before the fit."""


def plan(recipe: Recipe) -> tuple[Plan, dict[str, tuple[float, float]], FitTime]:
    """Return what a run would prune, each layer's milliseconds before and after, and what steps of its fit take.

    Nothing is trained or written.

    The student has the weights of its checkpoint, or those that training starts from: scores, and with them which
    channels go, change while it trains.

    Raises:
        UserError: if the recipe does not prune, or what it asks for cannot be reached.
    """
    s = recipe.compress.prune
    if s.amount is None:
        advice = "it searches what to prune; run it" if recipe.searches else "set compress.prune.amount"
        raise UserError(f"recipe {recipe.name} does not prune; {advice}")
    data = data_of(recipe, workers=0)
    seed(recipe)
    student = untrained_student(recipe, data)
    settings = Settings(s.amount, score=s.score, scope=s.scope, target=s.target, align=s.align, rate_norm=s.rate_norm)
    structure = trace_structure(student, as_call(example_of(data.input_shape, 1)), exclude=s.exclude)
    calibration = _some_calls(data) if s.scope == "sensitivity" else None
    planned = make_plan(
        structure, student, settings, allocation=allocate_widths(structure, student, settings, calibration=calibration)
    )
    time = predict_fit(student, planned, s, example_of(data.input_shape, recipe.batch_size))
    return planned, predict(structure, [len(row.removed) for row in planned.groups]), time


def quantization_plan(recipe: Recipe) -> list[Row]:
    """Return what a run would quantize and what it would not; ranges are not known before training.

    Raises:
        UserError: if the recipe does not quantize through int8, or what it excludes cannot be.
    """
    s = recipe.compress.quantize
    if s.begin is None and s.mode != "static":
        raise UserError(f"recipe {recipe.name} does not go through int8; set compress.quantize.begin")
    data = data_of(recipe, workers=0)
    student = untrained_student(recipe, data)
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
    data = data_of(recipe, workers=0)
    teacher, losses = untrained_teacher(recipe, data), [loss for loss in recipe.distil.losses if loss in FEATURES]
    return matches_of(losses, recipe.distil.layers, untrained_student(recipe, data), teacher)


def dry_run(recipe: Recipe, data: Any) -> None:
    """Find on an untrained student what would stop the run after hours: names, amounts, an unfit checkpoint."""
    student = untrained_student(recipe, data)
    _check_words(data, "student", student)
    _dry_run_distillation(recipe, data, student)
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


def run_preflight(recipe: Recipe, data: Any, student: nn.Module, teachers: list[nn.Module], console: Console) -> None:
    """Look for what would make the fit worthless, on some hundred samples.

    Raises:
        UserError: on the first mistake; what is merely odd is printed.
    """
    if not recipe.distil.preflight or not teachers:
        return
    data.setup("fit")
    text = hasattr(data, "tokenizer")
    alone = {"soft_labels": 0.0, task_of(data.task).label_loss: 1.0} if recipe.distil.soft_weight == 0 else None
    findings: list[Problem] = []
    temperature = recipe.distil.temperature
    for number, teacher in enumerate(teachers):
        found = preflight(
            None if number else student, teacher, train=data.train_dataloader(), validation=data.val_dataloader(),
            task=data.task, num_classes=data.num_classes, class_names=data.class_names,
            tokenizer=data.tokenizer if text else None,
            temperature=None if temperature is None else value_at(temperature, 0.0),
            losses=recipe.distil.losses or alone, normalisation=None if text else (data.mean, data.std),
            seconds=_PREFLIGHT / len(teachers), keyed=data.keyed, **_facts(recipe, data, number),
        )  # fmt: skip
        known = {finding.message for finding in findings}
        which = f"teacher {number + 1} of {len(teachers)}: " if number else ""
        findings += [replace(f, message=which + f.message) for f in found if f.message not in known]
    for finding in findings:
        if finding.severity == "warning":
            console.print(f"warning: {finding.message}", highlight=False, markup=False)
    errors = _of_all_ranks([finding.message for finding in findings if finding.severity == "error"])
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"preflight: {errors[0]}{more}; distil.preflight=false skips these checks")


def _dry_run_distillation(recipe: Recipe, data: Any, student: nn.Module) -> None:
    if recipe.teacher is None:
        return
    if recipe.distil.cache and data.views is None:
        raise UserError(
            f"distil.cache=true: {recipe.data} shows another view of each sample in every epoch, which is never seen "
            "again; set data_options.views=4, or data_options.augment=false"
        )
    folders = checkpoints(recipe)
    teachers = [given_teacher(recipe, data, folder) for folder in folders] or [untrained_teacher(recipe, data)]
    for teacher in teachers:
        _check_words(data, "teacher", teacher)
    module = module_of(recipe, data, student, teachers)
    if module.layers is not None:
        module.layers.open(as_call(example_of(data.input_shape)))
        module.layers.close()


def _check_words(data: Any, name: str, model: nn.Module) -> None:
    """Refuse a model whose embedding has no rows for the tokenizer's last words: it would fail at the first of them."""
    problem = too_many_words(data.tokenizer, name, model) if hasattr(data, "tokenizer") else None
    if problem is not None:
        raise UserError(f"data {data.name}: {problem}, or give it a larger vocab_size")


def _some_calls(data: Any, samples: int = 128) -> list[Call]:
    data.setup("fit")
    form = BatchFormat(keyed=data.keyed)
    return [form.split(batch).call for batch in first_samples(data.train_dataloader(), samples)]


def _of_all_ranks(messages: list[str]) -> list[str]:
    """Return the messages of every rank once: each looks at samples of its own, and all must stop together."""
    if not (dist.is_available() and dist.is_initialized()):
        return messages
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, messages)
    return list(dict.fromkeys(message for each in found for message in each))


def _facts(recipe: Recipe, data: Any, number: int) -> dict[str, Any]:
    """Return what is known of a teacher: classes, inputs, tokenizer and accuracy that it was trained with."""
    folders, facts = checkpoints(recipe), {}
    if folders:
        folder = Path(folders[number])
        config = read_json(folder / CONFIG, made_by="lighten.save")
        facts = {"teacher_classes": tuple(config.get("classes", ())), "teacher_accuracy": _claim(folder)}
        if config.get("mean") and config.get("std"):
            facts["teacher_normalisation"] = (tuple(config["mean"]), tuple(config["std"]))
    source = folders[number] if folders else recipe.teacher_options.get("path")
    if hasattr(data, "tokenizer") and source is not None:
        facts["teacher_tokenizer"] = _tokenizer_of(source)
    return facts


def _claim(folder: Path) -> float | None:
    """Return the accuracy that a run measured for one of its model folders, ``None`` where there was no run."""
    role = {"teacher": "teacher", "dense": "student", "student": "compressed"}.get(folder.name)
    if role is None or not (folder.parent / "scores.json").exists():
        return None
    measured = read_json(folder.parent / "scores.json", made_by="lighten measure RUN")["models"][role]
    return None if measured is None else measured.get("accuracy")


def _tokenizer_of(source: str) -> Any:
    """Return the tokenizer that lies beside a model, ``None`` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(source), trust_remote_code=False)
    except (OSError, ValueError):  # a folder of weights alone
        return None
