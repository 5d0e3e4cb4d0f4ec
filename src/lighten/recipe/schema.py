"""The recipe: a typed schema of everything that decides a run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from lighten.utils.safe_yaml import flatten

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
CHANGED = "changed"
"""The value of ``resume`` with which a run may go on with other settings than it began with."""

RUNTIME_SETTINGS = (
    "name",
    "runs",
    "id",
    "logger",
    "workers",
    "resume",
    "delivery",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.timeout",
)
"""Settings that may differ when a run goes on: they change nothing that is learned."""


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


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return all that decides what is learned, by dotted keys."""
    return {key: value for key, value in flatten(asdict(recipe)) if not key.startswith(RUNTIME_SETTINGS)}
