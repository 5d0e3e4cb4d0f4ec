"""Keypoints: where some named points of a picture are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lighten.errors import UserError
from lighten.tasks.classes import AGREEMENT
from lighten.tasks.losses import as_student, masked_mean, upcast, weighted
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured, PartScores, Task, named

NEAR = 0.1
"""Distance from the true point, as a share of the picture's sides, up to which an answer is right."""
SAME = 0.05
"""Distance up to which two models mean the same point."""
SURE = 0.2
"""Height of a heatmap from which on its point is shown."""
FOUND = Meaning("Points found (PCK 0.1)", "percent")


@register_task("keypoints")
@dataclass(frozen=True, kw_only=True)
class Keypoints(Task):
    """Points: labels float32 (batch, points, 3), answers heatmaps (batch, points, height, width).

    A row of labels is x and y, as shares of the picture's width and height, and 1; or 0 where the point is not there,
    which then counts nowhere. Heatmaps may be smaller than the picture: their first pixel stands for its first
    1/height and 1/width. The point of a heatmap is its highest pixel, moved by the parabola through it and its
    neighbours, in each direction.

    A heatmap is taught a Gaussian of height 1 around its point: the squared differences, summed and divided by the
    Gaussian's own, so that nothing at all costs 1 (Tompson et al. 2014, section 3.2, but for what it is divided by).

    Metrics are ``pck``, the share of points that are there whose answer is no further than 0.1 from them (Yang and
    Ramanan 2013, with the picture in the place of the person), and ``distance``, the mean: the length of
    (x - x', y - y') in shares of the picture's width and height.

    Attributes:
        spread: of the Gaussian, its standard deviation as a share of the heatmap's sides; at least one pixel.

    Raises:
        UserError: if ``spread`` is no share.
    """

    spread: float = 0.05

    reported: ClassVar[Mapping[str, Meaning]] = {
        "pck": FOUND, "distance": Meaning("Mean distance in sides", lower_is_better=True),
    }  # fmt: skip
    alike: ClassVar[Mapping[str, Meaning]] = {"agreement": AGREEMENT}
    label_dims: ClassVar[tuple[int, ...]] = (3,)
    answer_dims: ClassVar[int] = 4
    label_text: ClassVar[str] = "(batch, points, 3) of x, y, 1 where it is there"
    answer_text: ClassVar[str] = "(batch, points, height, width)"
    answers_are: ClassVar[str] = "heatmaps"
    outputs_are: ClassVar[str] = "points"
    fit_text: ClassVar[str] = "one label for each heatmap"
    none_text: ClassVar[str] = "of points that are not there; expected some that are; check how labels are made"
    reads: ClassVar[str] = "points"
    head: ClassVar[str] = "keypoints"
    pipelines: ClassVar[Mapping[str, str]] = {"image": "keypoint-detection"}
    exhibit: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        if isinstance(self.spread, bool) or not 0 < self.spread < 0.5:
            raise UserError(f"keypoints: spread={self.spread!r}, expected a share of the picture between 0 and 0.5")

    # What is given to a loss

    def check_labels(self, labels: Any) -> Tensor:
        """Return the labels of a batch; they must be rows of three numbers."""
        labels = super().check_labels(labels)
        if labels.shape[-1] != 3 or not labels.is_floating_point():
            raise UserError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected {self.label_text}")
        return labels

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether there is a label for each heatmap."""
        return labels.shape == (*answers.shape[:2], 3)

    def comparable(self, ours: Tensor, theirs: Tensor) -> bool:
        """Return whether both are heatmaps of as many points; their sizes may differ."""
        return ours.ndim == theirs.ndim == 4 and ours.shape[:2] == theirs.shape[:2]

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples, points, 3)."""
        return samples, outputs, 3

    def counted(self, labels: Tensor) -> Tensor:
        """Return which points are there."""
        return labels[..., 2] != 0

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor:
        """Return which numbers are outside of the picture, or neither 0 nor 1 where that is asked."""
        there = labels[..., 2:]
        outside = ~((labels[..., :2] >= 0) & (labels[..., :2] <= 1)) & (there != 0)
        return torch.cat([outside, (there != 0) & (there != 1)], -1)

    def bad_text(self, labels: Tensor, bad: Tensor) -> str:
        """Return the first bad row in words."""
        return f"point ({', '.join(f'{value:.4g}' for value in labels[bad.any(-1)][0].tolist())})"

    def range_text(self, outputs: int) -> str:
        """Return what labels are."""
        return "x and y from 0 to 1, as shares of the picture, and 1 where the point is there, else 0"

    # What is learned

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the relative squared error of the heatmaps of points that are there."""
        values = upcast(answers)
        each = self._apart(values, self.heatmaps(labels.to(values.dtype), *values.shape[2:]))
        return masked_mean(weighted(each, weights), self.counted(labels), count)

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the relative squared difference to a teacher's heatmaps, brought to the student's size.

        Heatmaps have no temperature.
        """
        values = upcast(answers)
        theirs = as_student(teacher, values)
        if theirs.shape[2:] != values.shape[2:]:
            theirs = F.interpolate(theirs, values.shape[2:], mode="bilinear", align_corners=False, antialias=True)
        return masked_mean(weighted(self._apart(values, theirs), weights), None, count)

    def heatmaps(self, labels: Tensor, height: int, width: int) -> Tensor:
        """Return the Gaussians of labels, (batch, points, height, width)."""
        spreads = self._spreads(height, width)
        down, across = (
            (-(((torch.arange(n, device=labels.device) + 0.5 - n * labels[..., i, None]) / s).square()) / 2).exp()
            for n, i, s in ((height, 1, spreads[0]), (width, 0, spreads[1]))
        )
        return down[..., None] * across[..., None, :]

    def _spreads(self, height: int, width: int) -> tuple[float, float]:
        return max(1.0, self.spread * height), max(1.0, self.spread * width)

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the relative squared difference of each heatmap, (batch, points)."""
        return (ours - theirs).square().sum((2, 3)) / (math.pi * math.prod(self._spreads(*ours.shape[2:])))

    # What is measured

    def rows(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and labels of those that are there: (rows, 4) of x, y, height and number, and (rows, 3)."""
        there = self.counted(labels)
        numbers = torch.arange(labels.shape[1], device=labels.device).expand(there.shape)
        points = torch.cat([points_of(answers), numbers[..., None].to(answers.device)], -1)
        return points[there], labels[there].float()

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        near, far = (MeanMetric(nan_strategy="disable") for _ in range(2))
        return {
            "pck": Measured(near, lambda ours, theirs: ((_distance(ours, theirs) <= NEAR).float(),)),
            "distance": Measured(far, lambda ours, theirs: (_distance(ours, theirs),)),
        }

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the share of points of which both models say the same."""
        mean = MeanMetric(nan_strategy="disable")
        return {"agreement": Measured(mean, lambda ours, theirs: (self.same(ours, theirs).float(),))}

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return for each row whether both models' points are within 0.05 of each other."""
        return _distance(ours, theirs) <= SAME

    def parts(self, outputs: int, names: Sequence[str]) -> "ByPoint":
        """Return the share found of each point."""
        return ByPoint(outputs, names)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return minus each picture's mean distance."""
        there = self.counted(labels)
        far = torch.where(there, _distance(points_of(answers), labels.to(answers.device)), 0.0)
        return -far.sum(1) / there.sum(1).clamp_min(1)

    # What is shown

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return each picture's points whose heatmap reaches 0.2, as :meth:`marks` has them."""
        return [self.marks(each, names) for each in answers]

    def marks(self, values: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the points of one picture's answer or label: ``point`` (x, y in shares), ``label``, ``odds``.

        Odds are the height of the heatmap, at most 1.
        """
        is_label = values.ndim == 2
        points = values if is_label else points_of(values[None])[0]
        rows = zip(named(names, len(points)), points.float().cpu().tolist(), strict=True)
        return [
            {"point": row[:2], "label": name, "odds": None if is_label else min(row[2], 1.0)}
            for name, row in rows
            if row[2] >= SURE
        ]


def points_of(heatmaps: Tensor) -> Tensor:
    """Return x, y (shares of the picture) and height of each heatmap's point, (batch, points, 3)."""
    heatmaps = upcast(heatmaps)
    height, width = heatmaps.shape[2:]
    top, at = heatmaps.flatten(2).max(-1)
    y, x = at // width, at % width
    column = heatmaps.gather(3, x[..., None, None].expand(-1, -1, height, 1))[..., 0]
    row = heatmaps.gather(2, y[..., None, None].expand(-1, -1, 1, width))[..., 0, :]
    place = [(x + 0.5 + _peak(row, x)) / width, (y + 0.5 + _peak(column, y)) / height]
    return torch.stack([*place, top], -1)


def _peak(values: Tensor, at: Tensor) -> Tensor:
    """Return how far beside the highest place of (…, n) the top of the parabola through its neighbours is."""
    padded = F.pad(values, (1, 1), mode="replicate")
    before, top, after = (padded.gather(-1, (at + i)[..., None])[..., 0] for i in range(3))
    bend = 2 * top - before - after
    return torch.where(bend > 0, (after - before) / (2 * bend).clamp_min(1e-12), 0.0).clamp(-0.5, 0.5)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return torch.linalg.vector_norm(ours[..., :2].float() - theirs[..., :2].float(), dim=-1)


class ByPoint(PartScores):
    """The share found of each point.

    Args:
        outputs: points.
        names: of the points.
    """

    kind, metric, meaning = "point", "pck", FOUND

    def __init__(self, outputs: int, names: Sequence[str]) -> None:
        self.names = named(names, outputs)
        self.counts = torch.zeros(2, outputs)

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        near = (_distance(answers, labels) <= NEAR).float()
        self.counts.index_add_(1, answers[:, 3].long().cpu(), torch.stack([near, torch.ones_like(near)]).cpu())

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return the share of each point; ``None`` for one that is never there."""
        near, there = self.counts.tolist()
        return self.names, [n / t if t else None for n, t in zip(near, there, strict=True)]
