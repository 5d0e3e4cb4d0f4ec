"""Image to image: a picture for each picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lighten.errors import UserError
from lighten.tasks.numbers import NumberTask
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured, PartScores

PSNR = Meaning("PSNR", "decibel")


@register_task("image")
@dataclass(frozen=True, kw_only=True)
class ImageToImage(NumberTask):
    """A picture: labels and answers (batch, channels, height, width), standardised by mean and std a channel.

    Metrics are ``psnr`` (peak signal-to-noise ratio, mean over pictures), ``mae`` (mean absolute error) and ``loss``,
    the squared error of the standardised values.

    Attributes:
        data_range: the difference of white and black, before standardising.

    Raises:
        UserError: as ``NumberTask``, or if ``data_range`` is not above zero.
    """

    data_range: float = 1.0

    reported: ClassVar[Mapping[str, Meaning]] = {
        "psnr": PSNR, "mae": Meaning("Mean absolute error", "number", lower_is_better=True),
    }  # fmt: skip
    alike: ClassVar[Mapping[str, Meaning]] = {"psnr": Meaning("PSNR between them", "decibel")}
    label_dims: ClassVar[tuple[int, ...]] = (4,)
    answer_dims: ClassVar[int] = 4
    label_text: ClassVar[str] = "(batch, channels, height, width)"
    answer_text: ClassVar[str] = "(batch, channels, height, width)"
    fit_text: ClassVar[str] = "pictures of the same size"
    outputs_are: ClassVar[str] = "channels"
    reads: ClassVar[str] = "pictures"
    pipelines: ClassVar[Mapping[str, str]] = {"image": "image-to-image"}
    exhibit: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.data_range < float("inf"):
            raise UserError(f"image: data_range={self.data_range}, expected a number above zero: white less black")

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether the shapes are the same."""
        return answers.shape == labels.shape

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples, channels, any, any)."""
        return samples, outputs, None, None

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        self._check_channels(outputs)
        psnr, mae, loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        return {
            "psnr": Measured(psnr, lambda x, y: (self.psnr(x, y),)),
            "mae": Measured(mae, lambda x, y: ((self.restored(x) - self.restored(y)).abs().flatten(1).mean(1),)),
            "loss": Measured(loss, lambda x, y: ((x - y).square().flatten(1).mean(1),)),
        }

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the peak signal-to-noise ratio of one model's pictures against the other's."""
        return {"psnr": Measured(MeanMetric(nan_strategy="disable"), lambda x, y: (self.psnr(x, y),))}

    def psnr(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return 10 log10(range^2 / mean squared error) of each picture, in decibels; 100 at most."""
        errors = (self.restored(answers) - self.restored(labels)).square().flatten(1).mean(1)
        return -10 * (errors / self.data_range**2).clamp_min(1e-10).log10()

    def parts(self, outputs: int, names: Sequence[str]) -> "ByImage":
        """Return each picture's PSNR."""
        return ByImage(self)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return each picture's PSNR."""
        return self.psnr(answers.float(), labels.float())

    def retention(self, reference: Mapping[str, float], compressed: Mapping[str, float]) -> float:
        """Return the ratio of the mean squared errors that the decibels stand for: 0.1 dB less keeps 97.7 %."""
        return float(10 ** ((compressed["psnr"] - reference["psnr"]) / 10))

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return pictures, uint8 (height, width, 3)."""
        return [self.picture(answer).numpy() for answer in answers]

    def picture(self, values: Tensor) -> Tensor:
        """Return standardised values (channels, height, width) as uint8 (height, width, 3)."""
        shown = (self.restored(values[None].float())[0] / self.data_range).clamp(0, 1).mul(255).round().byte().cpu()
        grey = shown[:3] if len(shown) >= 3 else shown[:1].expand(3, -1, -1)
        return grey.permute(1, 2, 0)


class ByImage(PartScores):
    """The PSNR of each picture, by its number in the data.

    Args:
        task: measures it.
    """

    kind, metric, meaning = "image", "psnr", PSNR

    def __init__(self, task: ImageToImage) -> None:
        self.task = task
        self.values: list[float | None] = []

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add pictures."""
        self.values += self.task.psnr(answers, labels).tolist()

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return each picture's PSNR in decibels."""
        return [f"image {i}" for i in range(len(self.values))], self.values
