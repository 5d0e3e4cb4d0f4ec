"""Check that the settings of a recipe make sense, before anything is loaded."""

import re
import warnings
from typing import Any

from lighten.data import check_data, data_names
from lighten.distillation.settings import DistilSettings
from lighten.errors import RecipeError, UserError, shown
from lighten.models import check_model, model_names
from lighten.pruning.settings import PruneSettings
from lighten.quantization.settings import QuantizeSettings
from lighten.recipe.schema import AUTO, CHANGED, FROM_TEACHER, SEARCH, Delivery, Recipe, Trainer
from lighten.training.optimizer import OptimizerSettings
from lighten.training.settings import ON_BAD_BATCH
from lighten.utils.checks import check_number, check_one_of, check_whole
from lighten.utils.targets import TARGETS

LOGGERS = ("csv", "wandb", "tensorboard", "none")
MAX_SEED = 2**32 - 1
"""What all generators of random numbers take."""
RESUME = ("same", CHANGED)
"""Whether a resumed run may have other settings than it began with."""
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
EXAMPLES = {"max_drop": "1%", "budget": "20min"}
"""Of needs, as text."""
FORMS = (AUTO, "int8")
PRECISIONS = ("auto", "32-true", "32", "16-mixed", "bf16-mixed")


class RecipeWarning(UserWarning):
    """A setting that has no effect."""


def check(recipe: Recipe) -> Recipe:
    """Return ``recipe`` if its settings make sense.

    Raises:
        RecipeError: on the first that does not: the key, what was given, what was expected.
    """
    try:
        _check_run(recipe)
        for key, settings in _nodes(recipe).items():
            settings.check(f"{key}.")
        _check_delivery(recipe.delivery)
        (_check_search if recipe.searches else _check_techniques)(recipe)
        _check_trainer(recipe.trainer)
        _check_options(recipe)
    except UserError as error:
        raise RecipeError(str(error)) from None
    return recipe


def _nodes(recipe: Recipe) -> dict[str, PruneSettings | QuantizeSettings | DistilSettings | OptimizerSettings]:
    """Return the settings that know themselves what makes sense, by their keys."""
    return {
        "compress.prune": recipe.compress.prune,
        "compress.quantize": recipe.compress.quantize,
        "distil": recipe.distil,
        "optimizer": recipe.optimizer,
        "teacher_fit.optimizer": recipe.teacher_fit.optimizer,
        "student_fit.optimizer": recipe.student_fit.optimizer,
    }


def _check_run(recipe: Recipe) -> None:
    check_one_of("data", recipe.data, data_names())
    check_one_of("student", recipe.student, [*model_names(), FROM_TEACHER, AUTO])
    if recipe.teacher is not None:
        check_one_of("teacher", recipe.teacher, [*model_names(), AUTO])
    check_one_of("logger", recipe.logger, LOGGERS)
    check_one_of("resume", recipe.resume, RESUME)
    check_one_of("on_bad_batch", recipe.on_bad_batch, ON_BAD_BATCH)
    if recipe.id is not None:
        check_folder_name("id", recipe.id)
    check_whole("batch_size", recipe.batch_size, 2)  # batch norm cannot train on a lone sample
    check_whole("workers", recipe.workers, 0)
    check_whole("seed", recipe.seed, 0, MAX_SEED)
    check_whole("teacher_fit.max_epochs", recipe.teacher_fit.max_epochs, 0)
    check_whole("student_fit.max_epochs", recipe.student_fit.max_epochs, 0)


def _check_delivery(delivery: Delivery) -> None:
    for target in delivery.targets:
        check_one_of("delivery.targets", target, TARGETS)
    if not delivery.targets:
        raise RecipeError(f"delivery.targets=[]: expected one at least. Choices: {', '.join(TARGETS)}")
    if "onnx" not in delivery.targets:
        given = ", ".join(delivery.targets)
        raise RecipeError(f"delivery.targets=[{given}]: the others are compared with onnx; name it as well")
    if delivery.opset is not None:
        check_whole("delivery.opset", delivery.opset, 18, 23)
    check_one_of("delivery.precision", delivery.precision, FORMS)


def _check_search(recipe: Recipe) -> None:
    """Check what stands beside needs and budget; what they say themselves is read before the run begins."""
    for key, given in {"max_drop": recipe.max_drop, "budget": recipe.budget, **_targets(recipe)}.items():
        if isinstance(given, bool) or not isinstance(given, int | float | str | None):
            raise RecipeError(f"{key}={given!r}: expected a number, or text such as {EXAMPLES.get(key, '50%')!r}")
    key = next(key for key in SEARCH if getattr(recipe, key) not in (None, {}))
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    chosen = {
        "teacher": recipe.teacher is not None, "compress.prune.amount": prune.amount is not None,
        "compress.quantize.begin": quantize.begin is not None, "compress.quantize.mode": quantize.after_training,
    }  # fmt: skip
    for setting in (setting for setting, given in chosen.items() if given):
        raise RecipeError(f"{setting}: a recipe with {key} searches for it; leave it out, or set {key} to null")
    if recipe.student_checkpoint is None and recipe.student_fit.max_epochs < 1:
        raise RecipeError(f"{key}: a trained model is compressed; give student_checkpoint, or student_fit.max_epochs")
    if recipe.student == FROM_TEACHER:
        raise RecipeError(f"student=from_teacher: a recipe with {key} has no teacher; name a student")
    if recipe.delivery.targets != ["onnx"]:
        raise RecipeError(f"delivery.targets: a recipe with {key} measures onnx; export to others afterwards")


def _targets(recipe: Recipe) -> dict[str, Any]:
    return {f"target.{name}": value for name, value in recipe.target.items()}


def _check_techniques(recipe: Recipe) -> None:
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    needs = "pruning" if prune.amount is not None else "quantization" if quantize.begin is not None else None
    if needs and re.match("fsdp|deepspeed|model_parallel", recipe.trainer.strategy):
        raise RecipeError(
            f"trainer.strategy={recipe.trainer.strategy}: {needs} needs whole weights on every device; use ddp"
        )
    _check_quantization(recipe)
    if recipe.teacher is None and prune.amount is None and quantize.begin is None and not quantize.after_training:
        raise RecipeError(
            "teacher=null: nothing to do; name a teacher, or set compress.prune.amount, compress.quantize.begin or "
            "compress.quantize.mode"
        )
    if recipe.teacher is None:
        if checkpoints(recipe):
            raise RecipeError(f"teacher_checkpoint={recipe.teacher_checkpoint!r}: expected none, as teacher is null")
        if recipe.distil != DistilSettings():
            warnings.warn("distil has no effect, as teacher is null", RecipeWarning, stacklevel=2)
    elif not checkpoints(recipe) and recipe.teacher_fit.max_epochs < 1 and "path" not in recipe.teacher_options:
        raise RecipeError(
            "teacher_fit.max_epochs=0: expected at least 1, as no teacher_checkpoint is given to start from"
        )
    if recipe.student == FROM_TEACHER:
        _check_from_teacher(recipe)


def checkpoints(recipe: Recipe) -> list[str]:
    """Return the folders of trained teachers that a recipe names: none, one or several.

    Raises:
        RecipeError: if ``teacher_checkpoint`` is anything but folders.
    """
    given = recipe.teacher_checkpoint
    folders = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(folder, str) for folder in folders):
        raise RecipeError(f"teacher_checkpoint={given!r}: expected a folder, or a list of folders")
    return folders


def _check_from_teacher(recipe: Recipe) -> None:
    known = ("layers", "family", "width")
    if recipe.teacher is None:
        raise RecipeError("student=from_teacher: expected a teacher to take its layers from, teacher is null")
    for key in recipe.student_options:
        check_one_of("student_options", key, known)
    if recipe.student_checkpoint is not None or recipe.student_fit.max_epochs:
        raise RecipeError("student=from_teacher: starts as its teacher's layers; leave out student_checkpoint and _fit")


def _check_quantization(recipe: Recipe) -> None:
    quantize, targets = recipe.compress.quantize, recipe.delivery.targets
    if quantize.after_training and quantize.begin is not None:
        raise RecipeError(
            f"compress.quantize.begin={quantize.begin}: mode {quantize.mode} comes after training; set begin to null"
        )
    for target in targets:
        modes = TARGETS[target].modes
        if quantize.mode not in ("train", *modes):
            advice = "; use float16" if quantize.mode == "bfloat16" and "float16" in modes else ""
            raise RecipeError(
                f"delivery.targets: {target} does not take compress.quantize.mode={quantize.mode}{advice}"
            )
    if quantize.max_drop is None:
        return
    trained = recipe.student_checkpoint is not None or recipe.student_fit.max_epochs > 0
    if quantize.mode != "static" and not (quantize.begin is not None and trained):
        raise RecipeError(
            f"compress.quantize.max_drop={quantize.max_drop}: layers are chosen on a trained student; expected mode "
            "static, or begin with student_fit or student_checkpoint"
        )


def _check_trainer(trainer: Trainer) -> None:
    check_one_of("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    check_one_of("trainer.precision", trainer.precision, PRECISIONS)
    if trainer.sync_batchnorm and trainer.accelerator == "cpu":
        raise RecipeError("trainer.sync_batchnorm=true: torch synchronises batch norm between GPUs alone; set false")
    if trainer.strategy != "auto":
        from lightning.pytorch.strategies import StrategyRegistry

        able = [name for name in StrategyRegistry.available_strategies() if not re.search("spawn|fork|notebook", name)]
        check_one_of("trainer.strategy", trainer.strategy, ["auto", *able])
    if trainer.max_epochs < 1 and (trainer.max_epochs != -1 or trainer.max_steps < 1):
        raise RecipeError(
            f"trainer.max_epochs={trainer.max_epochs}: expected at least 1, or -1 with trainer.max_steps above 0"
        )
    for key in ("num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        check_whole(f"trainer.{key}", getattr(trainer, key), 1)
    check_number("trainer.timeout", trainer.timeout, above=0)
    if trainer.gradient_clip_val is not None:
        check_number("trainer.gradient_clip_val", trainer.gradient_clip_val, above=0)
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\s*\d+)+|\[\d+(, \d+)*\]", str(trainer.devices)):
        raise RecipeError(
            f"trainer.devices={trainer.devices!r}: expected a number of devices, their indices such as [0, 1], or auto"
        )
    for key in ("limit_train_batches", "limit_val_batches"):
        value = getattr(trainer, key)
        batches = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not batches and not (isinstance(value, float) and 0 < value <= 1):
            raise RecipeError(
                f"trainer.{key}={value!r}: expected a number of batches, or a share above 0 and up to 1.0"
            )


def check_folder_name(key: str, given: str) -> None:
    """Refuse a name that could be anything but that of one folder.

    Raises:
        RecipeError: if it holds more than letters, digits, ``.``, ``_`` and ``-``, or is longer than 100 characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", given):
        name = shown(repr(given))
        raise RecipeError(f"{key}={name}: expected letters, digits, '.', '_' and '-', as it names a folder")


def _check_options(recipe: Recipe) -> None:
    """Last, as models are imported for it."""
    checks = [("data", recipe.data, check_data)]
    checks += [("student", recipe.student, check_model)] if recipe.student not in (FROM_TEACHER, AUTO) else []
    checks += [("teacher", str(recipe.teacher), check_model)] if recipe.teacher not in (None, AUTO) else []
    for role, name, check_choice in checks:
        try:
            check_choice(name, getattr(recipe, f"{role}_options"))
        except UserError as error:
            raise UserError(f"{role}_options: {error}") from None
