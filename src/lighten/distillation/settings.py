"""The settings of distillation, with their defaults, choices and checks: of recipes and Python alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighten.errors import UserError, did_you_mean
from lighten.schedule import check_setting
from lighten.utils.checks import check_number, check_one_of, check_whole

FEATURES = ("hint", "hidden_cosine", "attention_transfer", "relations")
"""Losses that compare layers."""
OWN = "own"
"""The loss that a network returns itself where it is given labels."""
LABELS = ("cross_entropy", "mean_squared_error", "labels", OWN)
"""Losses that need no teacher; which of the first three is meant depends on the task."""
LOSSES = ("soft_labels", "dkd", "dist", *FEATURES, *LABELS)
"""The losses that ``DistillationModule(losses=...)`` accepts."""
OPTIONS = {"dkd": ("alpha", "beta"), "dist": ("beta", "gamma"), "relations": ("heads",)}
"""What ``loss_options`` may set."""
UNIFORM = "uniform"
"""Layers are compared at even distances."""
PRECISIONS = ("float32", "bfloat16", "float16")
"""What a teacher may compute in."""
CACHE_DTYPES = ("float32", "float16")
"""What a teacher's answers are stored in."""


@dataclass
class DistilSettings:
    """What is learned from the teacher, and how it is asked: ``distil`` of a recipe.

    Attributes:
        temperature: of the soft labels; a number, a schedule ``{from: 4.0, to: 1.0, begin: 0.0, end: 1.0, shape:
            linear}``, or null for what the task takes: 4, of boxes 1.
        soft_weight: weight of the soft labels in [0, 1]; the rest is for the labels.
        losses: weights by name instead of ``soft_weight``; numbers or schedules.
        loss_options: keywords of losses by name.
        layers: pairs of the student's and the teacher's, for losses that compare them.
        cache: keeps the teacher's logits on disk from the first epoch on.
        cache_dtype: what they are stored in.
        cache_top_k: classes to keep of each sample; null: all.
        teacher_precision: what the teacher computes in; null goes with the trainer.
        teacher_weights: of several teachers; equal by default.
        compile_teacher: run it through ``torch.compile``.
        preflight: look at data and teachers before the fit.
    """

    temperature: Any = None
    soft_weight: float = 0.9
    losses: dict[str, Any] = field(default_factory=dict)
    loss_options: dict[str, Any] = field(default_factory=dict)
    layers: Any = UNIFORM
    cache: bool = False
    cache_dtype: str = "float32"
    cache_top_k: int | None = None
    teacher_precision: str | None = None
    teacher_weights: list[float] = field(default_factory=list)
    compile_teacher: bool = False
    preflight: bool = True

    def check(self, prefix: str = "") -> None:
        """Raise ``UserError`` on the first setting that makes no sense, named with ``prefix``."""
        check_cache(self.cache_dtype, self.cache_top_k, f"{prefix}cache_")
        check_precision(self.teacher_precision, prefix)
        check_teacher_weights(self.teacher_weights, len(self.teacher_weights), prefix)
        check_layers(self.layers, prefix)
        check_soft_labels(self.temperature, self.soft_weight, prefix)
        if self.losses:
            check_losses(self.losses, prefix)
        check_loss_options(self.loss_options, prefix)


def check_soft_labels(temperature: Any, soft_weight: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless the soft labels' temperature (``None`` for the task's) and weight make sense."""
    for value in check_setting(f"{prefix}temperature", temperature) if temperature is not None else ():
        if value <= 0:
            raise UserError(f"{prefix}temperature={value}: expected a number above 0; 2 to 8 is usual")
    if isinstance(soft_weight, Mapping):
        raise UserError(f"{prefix}soft_weight={soft_weight}: expected a number, as weights over time belong to losses")
    check_number(f"{prefix}soft_weight", soft_weight, least=0, most=1)


def check_losses(losses: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ``UserError`` unless these are weights of losses, one of them above zero at some time."""
    if not isinstance(losses, Mapping):
        raise UserError(f"{prefix}losses={losses!r}, expected weights by name, as in {{soft_labels: 0.9, hint: 0.1}}")
    values = []
    for name, setting in losses.items():
        check_one_of(f"{prefix}losses", name, LOSSES)
        found = check_setting(f"{prefix}losses.{name}", setting)
        for value in found:
            check_number(f"{prefix}losses.{name}", value, least=0)
        values += found
    if not any(values):
        raise UserError(
            f"{prefix}losses={dict(losses)}: expected one weight above 0 at least, there is nothing to learn from"
        )


def check_loss_options(options: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ``UserError`` unless these are keywords of losses, with numbers that are not below zero."""
    if not isinstance(options, Mapping):
        raise UserError(f"{prefix}loss_options={options!r}, expected keywords by loss, as in {{dkd: {{beta: 2.0}}}}")
    for name, given in options.items():
        check_one_of(f"{prefix}loss_options", name, LOSSES)
        if not isinstance(given, Mapping):
            raise UserError(f"{prefix}loss_options.{name}={given!r}, expected keywords, as in {{dkd: {{beta: 2.0}}}}")
        for key, value in given.items():
            known = OPTIONS.get(name, ())
            if key not in known:
                hint = did_you_mean(str(key), known) if known else "it has no options"
                raise UserError(f"{prefix}loss_options.{name} has no {key!r}; {hint}")
            check_number(f"{prefix}loss_options.{name}.{key}", value, least=0)


def check_layers(layers: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless layers are paired uniformly, or by names."""
    if not isinstance(layers, str | Mapping) or not layers:
        raise UserError(f"{prefix}layers={layers!r}: expected {UNIFORM!r}, or the student's names to the teacher's")
    if isinstance(layers, str) and layers != UNIFORM:
        raise UserError(f"{prefix}layers={layers!r}; {did_you_mean(layers, [UNIFORM])}, or patterns of names")


def check_precision(precision: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless a teacher can compute in it; ``None`` goes with the trainer."""
    if precision is not None:
        check_one_of(f"{prefix}teacher_precision", precision, PRECISIONS)


def check_teacher_weights(weights: Sequence[float], teachers: int, prefix: str = "") -> None:
    """Raise ``UserError`` unless there is a number above zero for each teacher."""
    if len(weights) != teachers or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(
            f"{prefix}teacher_weights={list(weights)}: expected {teachers} numbers above zero, one a teacher"
        )


def check_cache(dtype: object, top_k: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless a teacher's answers can be kept so."""
    check_one_of(f"{prefix}dtype", dtype, CACHE_DTYPES)
    if top_k is not None:
        check_whole(f"{prefix}top_k", top_k, 1)


def check_label_smoothing(label_smoothing: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless it is a share of the labels that may be spread over all classes."""
    check_number(f"{prefix}label_smoothing", label_smoothing, least=0, below=1)
