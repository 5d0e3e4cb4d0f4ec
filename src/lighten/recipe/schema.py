"""The recipe: a typed schema, and a check that its settings make sense, before anything is loaded."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lighten.data import check_data, data_names
from lighten.errors import RecipeError, UserError, did_you_mean, one_line, shown
from lighten.models import check_model, model_names
from lighten.schedule import check_setting
from lighten.utils.safe_yaml import read_plain
from lighten.utils.targets import TARGETS

SCORES = ("fpgm", "magnitude", "l1", "mix", "bn_scale", "taylor", "random", "auto")
SCOPES = ("uniform", "global", "sensitivity")
PRUNE_TARGETS = ("channels", "macs", "parameters", "latency")
PRUNE_SCHEDULES = ("cubic", "linear", "exponential", "one_shot")
RANGES = ("auto", "moving_average", "min_max", "percentile", "mse", "entropy", "lsq")
MODES = ("train", "static", "dynamic", "float16", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
LOSSES = (
    "soft_labels", "dkd", "dist", "hint", "hidden_cosine", "attention_transfer", "relations", "cross_entropy",
    "mean_squared_error",
)  # fmt: skip
TEACHER_PRECISIONS = ("float32", "bfloat16", "float16")
FROM_TEACHER = "from_teacher"
"""The student that is made of its teacher's layers."""
CACHE_DTYPES = ("float32", "float16")
LOGGERS = ("csv", "wandb", "tensorboard", "none")
MAX_SEED = 2**32 - 1
"""What all generators of random numbers take."""
CHANGED = "changed"
RESUME = ("same", CHANGED)
"""Whether a run that goes on may have other settings than it began with."""
ON_BAD_BATCH = ("stop", "skip")
"""What is done about a batch whose loss or gradient is not finite."""
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
PRECISIONS = ("auto", "32-true", "32", "16-mixed", "bf16-mixed")


class RecipeWarning(UserWarning):
    """A setting that has no effect."""


@dataclass
class Optimizer:
    """The optimizer and its learning rate; ``warmup`` is a share of the fit."""

    name: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    warmup: float = 0.05
    schedule: str = "cosine"
    label_smoothing: float = 0.0


@dataclass
class Fit:
    """How a reference model (teacher, dense student) is trained once; 0 epochs: it is not."""

    max_epochs: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass
class Distil:
    """What is learned from the teacher, and how it is asked.

    ``losses`` by name, with weights, take the place of ``soft_weight``; weights and ``temperature`` may be schedules,
    ``{from: 4.0, to: 1.0, begin: 0.0, end: 1.0, shape: linear}``. ``layers`` pairs the student's with the teacher's for
    losses that compare them. ``cache`` keeps the teacher's logits on disk from the first epoch on.
    """

    temperature: Any = 4.0
    soft_weight: float = 0.9
    losses: dict[str, Any] = field(default_factory=dict)
    loss_options: dict[str, Any] = field(default_factory=dict)
    layers: Any = "uniform"
    cache: bool = False
    cache_dtype: str = "float32"
    cache_top_k: int | None = None
    teacher_precision: str | None = None
    teacher_weights: list[float] = field(default_factory=list)
    compile_teacher: bool = False
    preflight: bool = True


@dataclass
class Prune:
    """Which channels go, and when; ``amount``, a share of ``target``; null: none."""

    amount: float | None = None
    score: str = "fpgm"
    scope: str = "uniform"
    begin: float = 0.1
    end: float = 0.6
    schedule: str = "cubic"
    soft: bool = False
    exclude: list[str] = field(default_factory=list)
    target: str = "channels"
    align: int = 1
    rate_norm: float = 0.9


@dataclass
class Quantize:
    """From when on training goes through int8 (``begin`` null: never), or what another ``mode`` does after it.

    ``ranges: auto`` is the moving average in training and the least squared error after it. ``calibration`` counts
    samples of the validation split. With ``max_drop``, a share of accuracy, the most sensitive layers stay in floating
    point.
    """

    mode: str = "train"
    begin: float | None = None
    freeze: float = 0.9
    ranges: str = "auto"
    weight_bits: int = 7
    exclude: list[str] = field(default_factory=list)
    calibration: int = 512
    max_drop: float | None = None

    @property
    def after_training(self) -> bool:
        """Whether a trained student is quantized."""
        return self.mode != "train"

    @property
    def resolved_ranges(self) -> str:
        """The rule that ``auto`` stands for."""
        if self.ranges != "auto":
            return self.ranges
        return "mse" if self.after_training else "moving_average"


@dataclass
class Compress:
    """What makes the student small."""

    prune: Prune = field(default_factory=Prune)
    quantize: Quantize = field(default_factory=Quantize)


@dataclass
class Trainer:
    """Lightning's Trainer, by its own names; ``precision: auto`` is bfloat16 where that is fast, else float32.

    ``timeout`` is the strategy's: seconds until all processes end because one is stopped, or does not come to where the
    others are. Torch gives NCCL as many: a save, a compilation or a first look at the data on one rank takes less.
    """

    max_epochs: int = 10
    max_steps: int = -1
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    check_val_every_n_epoch: int = 1
    log_every_n_steps: int = 10
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    deterministic: bool = False
    sync_batchnorm: bool = False
    timeout: float = 600.0
    enable_progress_bar: bool = True


@dataclass
class Delivery:
    """What comes out."""

    targets: list[str] = field(default_factory=lambda: ["onnx"])
    opset: int | None = None


@dataclass
class Recipe:
    """Everything that decides a run."""

    name: str = field(default=MISSING, metadata={"internal": True})
    seed: int = 0
    data: str = "fashion_mnist"
    data_options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    workers: int = 0
    teacher: str | None = None
    teacher_options: dict[str, Any] = field(default_factory=dict)
    teacher_checkpoint: Any = None
    teacher_fit: Fit = field(default_factory=Fit)
    student: str = "resnet20"
    student_options: dict[str, Any] = field(default_factory=dict)
    student_checkpoint: str | None = None
    student_fit: Fit = field(default_factory=Fit)
    distil: Distil = field(default_factory=Distil)
    optimizer: Optimizer = field(default_factory=Optimizer)
    compress: Compress = field(default_factory=Compress)
    trainer: Trainer = field(default_factory=Trainer)
    logger: str = "csv"
    delivery: Delivery = field(default_factory=Delivery)
    runs: str = "runs"
    id: str | None = None
    resume: str = "same"
    on_bad_batch: str = "stop"


def check(recipe: Recipe) -> Recipe:
    """Return ``recipe`` if its settings make sense.

    Raises:
        RecipeError: on the first that does not: the key, what was given, what was expected.
    """
    _check_names(recipe)
    _check_numbers(recipe)
    _check_techniques(recipe)
    _check_trainer(recipe.trainer)
    if recipe.id is not None:
        check_folder_name("id", recipe.id)
    _check_options(recipe)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe), resolve=True)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe that ``to_yaml`` wrote.

    Raises:
        RecipeError: if there is none, or it does not fit the schema.
    """
    tree = read_plain(path)
    try:
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), tree))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: cannot be read as a recipe ({one_line(error, 200)})") from None
    assert isinstance(recipe, Recipe)
    return check(recipe)


def _check_names(recipe: Recipe) -> None:
    _one_of("data", recipe.data, data_names())
    _one_of("student", recipe.student, [*model_names(), FROM_TEACHER])
    if recipe.teacher is not None:
        _one_of("teacher", recipe.teacher, model_names())
    _one_of("logger", recipe.logger, LOGGERS)
    _one_of("resume", recipe.resume, RESUME)
    _one_of("on_bad_batch", recipe.on_bad_batch, ON_BAD_BATCH)
    _one_of("compress.prune.score", recipe.compress.prune.score, SCORES)
    _one_of("compress.prune.scope", recipe.compress.prune.scope, SCOPES)
    _one_of("compress.prune.target", recipe.compress.prune.target, PRUNE_TARGETS)
    _one_of("compress.prune.schedule", recipe.compress.prune.schedule, PRUNE_SCHEDULES)
    _one_of("compress.quantize.ranges", recipe.compress.quantize.ranges, RANGES)
    _one_of("compress.quantize.mode", recipe.compress.quantize.mode, MODES)
    for key, optimizer in _optimizers(recipe).items():
        _one_of(f"{key}.name", optimizer.name, OPTIMIZERS)
        _one_of(f"{key}.schedule", optimizer.schedule, SCHEDULES)
    for target in recipe.delivery.targets:
        _one_of("delivery.targets", target, TARGETS)
    _one_of("distil.cache_dtype", recipe.distil.cache_dtype, CACHE_DTYPES)
    if recipe.distil.teacher_precision is not None:
        _one_of("distil.teacher_precision", recipe.distil.teacher_precision, TEACHER_PRECISIONS)
    weights = []
    for loss, weight in recipe.distil.losses.items():
        _one_of("distil.losses", loss, LOSSES)
        values = _setting(f"distil.losses.{loss}", weight)
        for value in values:
            _number(f"distil.losses.{loss}", value, least=0)
        weights += values
    if recipe.distil.losses and not any(weights):
        raise RecipeError(f"distil.losses={recipe.distil.losses}: expected one weight above 0 at least")
    for loss in recipe.distil.loss_options:
        _one_of("distil.loss_options", loss, LOSSES)
    if not recipe.delivery.targets:
        raise RecipeError(f"delivery.targets=[]: expected one at least. Choices: {', '.join(TARGETS)}")
    if "onnx" not in recipe.delivery.targets:
        given = ", ".join(recipe.delivery.targets)
        raise RecipeError(f"delivery.targets=[{given}]: the others are compared with onnx; name it as well")


def _check_numbers(recipe: Recipe) -> None:
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    _whole("batch_size", recipe.batch_size, 2)  # batch norm cannot train on a lone sample
    _whole("workers", recipe.workers, 0)
    _whole("seed", recipe.seed, 0, MAX_SEED)
    _whole("teacher_fit.max_epochs", recipe.teacher_fit.max_epochs, 0)
    _whole("student_fit.max_epochs", recipe.student_fit.max_epochs, 0)
    _whole("compress.prune.align", prune.align, 1)
    if recipe.delivery.opset is not None:
        _whole("delivery.opset", recipe.delivery.opset, 18, 23)
    _whole("compress.quantize.weight_bits", quantize.weight_bits, 2, 8)
    _whole("compress.quantize.calibration", quantize.calibration, 1)
    if quantize.max_drop is not None:
        _number("compress.quantize.max_drop", quantize.max_drop, least=0, below=1)
    for temperature in _setting("distil.temperature", recipe.distil.temperature):
        _number("distil.temperature", temperature, above=0)
    _number("distil.soft_weight", recipe.distil.soft_weight, least=0, most=1)
    if prune.amount is not None:
        _number("compress.prune.amount", prune.amount, above=0, below=1)
    _number("compress.prune.rate_norm", prune.rate_norm, above=0, most=1)
    _number("compress.prune.begin", prune.begin, least=0, most=1)
    _number("compress.prune.end", prune.end, least=0, most=1)
    if quantize.begin is not None:
        _number("compress.quantize.begin", quantize.begin, least=0, below=1)
    _number("compress.quantize.freeze", quantize.freeze, least=0, most=1)
    for key, optimizer in _optimizers(recipe).items():
        _number(f"{key}.lr", optimizer.lr, above=0)
        _number(f"{key}.weight_decay", optimizer.weight_decay, least=0)
        _number(f"{key}.momentum", optimizer.momentum, least=0, below=1)
        if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
            raise RecipeError(f"{key}.nesterov=true: needs {key}.momentum above 0; set nesterov to false")
        _number(f"{key}.warmup", optimizer.warmup, least=0, below=1)
        _number(f"{key}.label_smoothing", optimizer.label_smoothing, least=0, below=1)


def _check_techniques(recipe: Recipe) -> None:
    prune, quantize = recipe.compress.prune, recipe.compress.quantize
    if prune.end < prune.begin:
        raise RecipeError(f"compress.prune.end={prune.end}: expected at least compress.prune.begin={prune.begin}")
    if prune.target == "latency" and prune.scope == "global":
        raise RecipeError("compress.prune.target=latency: expected compress.prune.scope uniform or sensitivity")
    if quantize.begin is not None and quantize.freeze < quantize.begin:
        raise RecipeError(
            f"compress.quantize.freeze={quantize.freeze}: expected at least compress.quantize.begin={quantize.begin}"
        )
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
        if recipe.distil != Distil():
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
        _one_of("student_options", key, known)
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
    _one_of("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    _one_of("trainer.precision", trainer.precision, PRECISIONS)
    if trainer.sync_batchnorm and trainer.accelerator == "cpu":
        raise RecipeError("trainer.sync_batchnorm=true: torch synchronises batch norm between GPUs alone; set false")
    if trainer.strategy != "auto":
        from lightning.pytorch.strategies import StrategyRegistry

        able = [name for name in StrategyRegistry.available_strategies() if not re.search("spawn|fork|notebook", name)]
        _one_of("trainer.strategy", trainer.strategy, ["auto", *able])
    if trainer.max_epochs < 1 and (trainer.max_epochs != -1 or trainer.max_steps < 1):
        raise RecipeError(
            f"trainer.max_epochs={trainer.max_epochs}: expected at least 1, or -1 with trainer.max_steps above 0"
        )
    for key in ("num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        _whole(f"trainer.{key}", getattr(trainer, key), 1)
    _number("trainer.timeout", trainer.timeout, above=0)
    if trainer.gradient_clip_val is not None:
        _number("trainer.gradient_clip_val", trainer.gradient_clip_val, above=0)
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
    checks += [("student", recipe.student, check_model)] if recipe.student != FROM_TEACHER else []
    checks += [("teacher", recipe.teacher, check_model)] if recipe.teacher is not None else []
    for role, name, check_choice in checks:
        try:
            check_choice(name, getattr(recipe, f"{role}_options"))
        except UserError as error:
            raise RecipeError(f"{role}_options: {error}") from None


def _setting(key: str, given: Any) -> list[float]:
    try:
        return check_setting(key, given)
    except UserError as error:
        raise RecipeError(str(error)) from None


def _optimizers(recipe: Recipe) -> Mapping[str, Optimizer]:
    return {
        "optimizer": recipe.optimizer,
        "teacher_fit.optimizer": recipe.teacher_fit.optimizer,
        "student_fit.optimizer": recipe.student_fit.optimizer,
    }


def _one_of(key: str, given: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if given not in choices:
        raise RecipeError(f"{key}={given!r}: {did_you_mean(given, choices)}")


def _whole(key: str, given: int, least: int, most: int | None = None) -> None:
    if given < least or (most is not None and given > most):
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise RecipeError(f"{key}={given}: expected a whole number, {expected}")


def _number(
    key: str,
    given: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    bounds = [("at least", least), ("above", above), ("at most", most), ("below", below)]
    met = math.isfinite(given) and (least is None or given >= least) and (above is None or given > above)
    if not (met and (most is None or given <= most) and (below is None or given < below)):
        expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise RecipeError(f"{key}={given}: expected a number {expected}")
