"""The settings of quantization, with their defaults, choices and checks: of recipes and Python alike."""

from dataclasses import dataclass, field

from lighten.errors import UserError
from lighten.utils.checks import check_number, check_one_of, check_whole

TRAIN, STATIC, DYNAMIC = "train", "static", "dynamic"
HALF_MODES = ("float16", "bfloat16")
POST_TRAINING_MODES = (STATIC, DYNAMIC, *HALF_MODES)
MODES = (TRAIN, *POST_TRAINING_MODES)

RANGES = ("moving_average", "min_max", "percentile", "mse", "entropy", "lsq")
"""How activation ranges follow the data; ``observe.RULES`` has the rules."""
TRAINED_RANGES, POST_TRAINING_RANGES = "moving_average", "mse"
"""The ranges by default, which ``auto`` stands for."""
AUTO = "auto"


@dataclass
class QuantizeSettings:
    """How the student gets to int8, or to what another mode makes of it: ``compress.quantize`` of a recipe.

    Attributes:
        mode: ``train`` goes through int8 from ``begin`` on; the others come after training.
        begin: share of the fit's optimizer steps after which fake-quantization begins, in [0, 1); null: never.
        freeze: share after which ranges no longer move.
        ranges: how activation ranges follow the data; ``auto`` is the moving average in training and the least squared
            error after it.
        weight_bits: 2 to 8.
        exclude: names, patterns or types of layers that stay in floating point.
        calibration: samples of the validation split.
        max_drop: tolerated loss of accuracy, a share: the most sensitive layers stay in floating point.
    """

    mode: str = TRAIN
    begin: float | None = None
    freeze: float = 0.9
    ranges: str = AUTO
    weight_bits: int = 7
    exclude: list[str] = field(default_factory=list)
    calibration: int = 512
    max_drop: float | None = None

    @property
    def after_training(self) -> bool:
        """Whether a trained student is quantized."""
        return self.mode != TRAIN

    @property
    def resolved_ranges(self) -> str:
        """The rule that ``auto`` stands for."""
        if self.ranges != AUTO:
            return self.ranges
        return POST_TRAINING_RANGES if self.after_training else TRAINED_RANGES

    def check(self, prefix: str = "") -> None:
        """Raise ``UserError`` on the first setting that makes no sense, named with ``prefix``."""
        check_one_of(f"{prefix}mode", self.mode, MODES)
        check_one_of(f"{prefix}ranges", self.ranges, (AUTO, *RANGES))
        check_bits(self.weight_bits, prefix)
        check_calibration(self.calibration, prefix)
        if self.max_drop is not None:
            check_drop(self.max_drop, prefix)
        check_times(self.begin, self.freeze, prefix)


def check_times(begin: object, freeze: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless training can go through int8 from ``begin`` on; ``None``: never."""
    if begin is not None:
        check_number(f"{prefix}begin", begin, least=0, below=1)
    check_number(f"{prefix}freeze", freeze, least=0, most=1)
    if begin is not None and freeze < begin:  # type: ignore[operator]
        raise UserError(f"{prefix}freeze={freeze}: expected at least {prefix}begin={begin}")


def check_bits(weight_bits: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless weights can have that many bits."""
    check_whole(f"{prefix}weight_bits", weight_bits, 2, 8)


def check_calibration(calibration: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless it is a number of samples."""
    check_whole(f"{prefix}calibration", calibration, 1)


def check_drop(max_drop: object, prefix: str = "") -> None:
    """Raise ``UserError`` unless it is a share, as 0.01 for one point of accuracy."""
    check_number(f"{prefix}max_drop", max_drop, least=0, below=1)
