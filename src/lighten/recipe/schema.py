"""The recipe: a typed schema of everything that decides a run."""

from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from lighten.distillation.settings import DistilSettings, check_label_smoothing
from lighten.pruning.settings import PruneSettings
from lighten.quantization.settings import QuantizeSettings
from lighten.training.optimizer import OptimizerSettings
from lighten.utils.safe_yaml import flatten

FROM_TEACHER = "from_teacher"
AUTO = "auto"
"""A model that is chosen by what the data hold."""
"""The student that is made of its teacher's layers."""
CHANGED = "changed"
"""The value of ``resume`` with which a run may be resumed with other settings than it began with."""

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
"""Settings that may differ when a run is resumed: they change nothing that is learned."""


@dataclass
class Optimizer(OptimizerSettings):
    """The optimizer of a recipe, by default one that trains networks from scratch; Python's default fine-tunes.

    ``label_smoothing`` is of the cross-entropy. Nothing is checked before the recipe is whole.
    """

    name: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Leave it to the check of the recipe, which knows the key."""

    def check(self, prefix: str = "") -> None:
        """Raise ``UserError`` on the first setting that makes no sense, named with ``prefix``."""
        super().check(prefix)
        check_label_smoothing(self.label_smoothing, prefix)


@dataclass
class Fit:
    """How a reference model (teacher, dense student) is trained once; 0 epochs: it is not."""

    max_epochs: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass
class Compress:
    """What makes the student small."""

    prune: PruneSettings = field(default_factory=PruneSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)


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
    """What comes out.

    ``precision`` ``auto`` keeps int8 weights alone, and computes in float32, where integers are slower on the processor
    that exports; ``int8`` computes in integers everywhere.
    """

    targets: list[str] = field(default_factory=lambda: ["onnx"])
    opset: int | None = None
    precision: str = AUTO


@dataclass
class Recipe:
    """Everything that decides a run.

    With ``max_drop`` (0.01, or 1%), ``target`` (``latency_ms``, ``bytes``, …) or ``budget`` (20min, 12 epochs) it is a
    search: how the trained student is compressed is found, and it becomes as small and fast as that allows.
    """

    name: str = field(default=MISSING, metadata={"internal": True})
    max_drop: Any = None
    target: dict[str, Any] = field(default_factory=dict)
    budget: Any = None
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
    distil: DistilSettings = field(default_factory=DistilSettings)
    optimizer: Optimizer = field(default_factory=Optimizer)
    compress: Compress = field(default_factory=Compress)
    trainer: Trainer = field(default_factory=Trainer)
    logger: str = "csv"
    delivery: Delivery = field(default_factory=Delivery)
    runs: str = "runs"
    id: str | None = None
    resume: str = "same"
    on_bad_batch: str = "stop"

    @property
    def searches(self) -> bool:
        """Whether how the student is compressed is searched."""
        return self.max_drop is not None or bool(self.target) or self.budget is not None


SEARCH = ("max_drop", "target", "budget")
"""Keys of a search; where they are not set, runs are what they were before there were searches."""


LATER = {"compress.prune.live": (False,), "compress.prune.cuts": (4,)}
"""Settings that came later, with the values at which earlier runs are the same."""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return all that decides what is learned, by dotted keys."""
    settings = {key: value for key, value in flatten(asdict(recipe)) if not key.startswith(RUNTIME_SETTINGS)}
    late: dict[str, tuple[Any, ...]] = {**dict.fromkeys(SEARCH, (None, {})), **LATER}
    return {key: value for key, value in settings.items() if value not in late.get(key, ())}
