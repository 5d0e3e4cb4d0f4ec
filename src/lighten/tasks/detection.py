"""Detection: boxes and what is in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lighten.errors import UserError
from lighten.tasks.average_precision import AveragePrecision, ByClass
from lighten.tasks.boxes import MOST, edges, found, generalised_overlap, hits, kept, overlap
from lighten.tasks.losses import as_student, check_temperature, quality_focal, upcast, weighted
from lighten.tasks.matching import DISTANCE, OVERLAP, costs, matched
from lighten.tasks.registry import register_task
from lighten.tasks.task import Meaning, Measured, Task, named

SURE = 0.3
"""Odds from which on a detection is said and shown."""
HEARD = 0.1
"""Odds from which on a teacher's place is taken for a box."""
SAME = 0.5
"""Overlap from which on two models mean the same box."""
SLACK = 1e-3
"""How far a box may reach outside of its picture, for numbers that were rounded."""


@register_task("detection")
@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Boxes and their classes: labels float32 (batch, most, 5), answers (batch, places, 4 + classes).

    A row of labels is class, centre x, centre y, width and height, as shares of the picture's; a row of class -1 is
    none. Answers have a box of that form at each place, then a logit for each class, each a question of its own.

    Metrics are ``map`` (mean average precision of overlaps 0.5 to 0.95, COCO's protocol), ``map_50`` and ``map_75``.
    A box is learned by focal loss on the overlap that its place has reached (Li et al.: Generalized Focal Loss, 2020,
    equation 2), by the distance of its four numbers and by generalised overlap, each per box.

    Attributes:
        matches: places that learn a box: 1 for networks that answer a set (DETR and its kind), several for networks of
            one stage, which then need ``nms``.
        nms: the overlap above which the weaker of two boxes of a class goes; ``None`` where none has to.

    Raises:
        UserError: if one of them makes no sense.
    """

    matches: int = 1
    nms: float | None = None

    reported: ClassVar[Mapping[str, Meaning]] = {
        "map": Meaning("mAP", "percent"), "map_50": Meaning("mAP at 0.5", "percent"),
        "map_75": Meaning("mAP at 0.75", "percent"),
    }  # fmt: skip
    alike: ClassVar[Mapping[str, Meaning]] = {"agreement": Meaning("Same boxes (F1)", "percent")}
    temperature: ClassVar[float] = 1.0
    channel_dim: ClassVar[int] = -1
    label_dims: ClassVar[tuple[int, ...]] = (3,)
    answer_dims: ClassVar[int] = 3
    label_text: ClassVar[str] = "(batch, most, 5) of class, centre x, centre y, width, height"
    answer_text: ClassVar[str] = "(batch, places, 4 + classes)"
    fit_text: ClassVar[str] = "five numbers a box and a picture for each"
    outputs_are: ClassVar[str] = "classes"
    none_text: ClassVar[str] = "without a box; expected some boxes; check how labels are made"
    averages: ClassVar[bool] = False
    reads: ClassVar[str] = "boxes"
    head: ClassVar[str] = "detection"
    pipelines: ClassVar[Mapping[str, str]] = {"image": "object-detection"}
    exhibit: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        if isinstance(self.matches, bool) or not isinstance(self.matches, int) or self.matches < 1:
            raise UserError(f"detection: matches={self.matches!r}, expected a whole number of places a box, 1 or more")
        if self.nms is not None and (isinstance(self.nms, bool) or not 0 < self.nms < 1):
            raise UserError(f"detection: nms={self.nms!r}, expected an overlap between 0 and 1")
        if self.matches > 1 and self.nms is None:
            raise UserError(
                f"detection: matches={self.matches} teaches several places the same box, and nothing takes away the "
                "weaker ones; give nms, 0.6 is usual"
            )

    # What is given to a loss

    def check_labels(self, labels: Any) -> Tensor:
        """Return the labels of a batch; they must be rows of five numbers."""
        labels = super().check_labels(labels)
        if labels.shape[-1] != 5 or not labels.is_floating_point():
            raise UserError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected {self.label_text}")
        return labels

    def outputs_of(self, answers: Tensor) -> int:
        """Return how many classes answers have."""
        return answers.shape[-1] - 4

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether there is a picture's row of labels for each picture."""
        return len(answers) == len(labels) and labels.shape[-1] == 5 and answers.shape[-1] > 4

    def comparable(self, ours: Tensor, theirs: Tensor) -> bool:
        """Return whether answers are to as many pictures and of as many classes; places may differ."""
        return ours.ndim == theirs.ndim == 3 and len(ours) == len(theirs) and ours.shape[-1] == theirs.shape[-1]

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...]:
        """Return (samples, any, 5)."""
        return samples, None, 5

    def counted(self, labels: Tensor) -> Tensor:
        """Return which rows are boxes."""
        return ~(labels[..., 0] < 0)

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor:
        """Return which numbers are no class, or of a box without area or outside of its picture."""
        kind, boxes = labels[..., 0], labels[..., 1:]
        sides = edges(boxes)
        outside = ~((sides[..., :2] >= -SLACK) & (sides[..., 2:] <= 1 + SLACK))
        flat = ~(boxes[..., 2:] > 0)
        wrong = ~((kind == kind.round()) & (kind < outputs))
        bad = torch.cat([wrong[..., None], outside, flat], -1) & self.counted(labels)[..., None]
        return bad | (~labels.isfinite())

    def bad_text(self, labels: Tensor, bad: Tensor) -> str:
        """Return the first bad row in words."""
        kind, *box = labels[bad.any(-1)][0].tolist()
        return f"box of class {kind:g} at ({', '.join(f'{value:.4g}' for value in box)})"

    def range_text(self, outputs: int) -> str:
        """Return what labels are."""
        return f"class 0 to {outputs - 1}, centre, width and height in shares, with an area and inside of the picture"

    # What is learned

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the loss on boxes, per box."""
        total = weighted(self._losses(answers, labels), weights).sum()
        count = self.counted(labels).sum() if count is None else count
        return total / (count.to(total.dtype) * min(self.matches, answers.shape[1])).clamp_min(1)

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the loss against a teacher's boxes, per box; the teacher may have other places, or be of another kind.

        The teacher's likely places (odds 0.1 and more, the weaker of the same thing taken away where ``nms`` says so)
        are boxes with odds of all classes. They are matched to the student's places as labels are; places that get
        none learn that nothing is there. That is so for models of one grid as well: place by place, a small student
        learned less than from labels alone.

        Classes are compared softened by the temperature, times its square, each place weighted by how far both are
        apart (as :func:`quality_focal`). As with labels, the odds to be learned are those of the box times the overlap
        with it that the place has reached: else all places of a box would say that they are the best. Distance and
        overlap of a box are weighted by the teacher's odds, whose sum all is divided by.
        """
        check_temperature(temperature)
        values = upcast(answers)
        boxes, there = self._heard(as_student(teacher, values))
        kinds = torch.where(there, boxes[..., 4:].argmax(-1), -1).to(values.dtype)
        as_labels = torch.cat([kinds[..., None], boxes[..., :4]], -1)
        sample, place, box = matched(costs(values.detach(), as_labels), there, self.matches)
        ours, theirs = values[sample, place], boxes[sample, box]
        scale, target = torch.ones_like(values[..., :1]), torch.zeros_like(values[..., 4:])
        scale[sample, place] = temperature
        reached = overlap(edges(ours[:, :4].detach()), edges(theirs[:, :4])).to(values.dtype)
        target[sample, place] = (theirs[:, 4:] / temperature).sigmoid() * reached[:, None]
        odds = theirs[:, 4:].amax(-1).sigmoid()
        each = (quality_focal(values[..., 4:] / scale, target) * scale**2).sum((1, 2))
        each = each.index_add(0, sample, odds * _of_boxes(ours[:, :4], theirs[:, :4]))
        return weighted(each, weights).sum() / (odds.sum() if count is None else count).clamp_min(1)

    def _losses(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of all losses of each picture."""
        values, labels = upcast(answers), upcast(labels)
        sample, place, box = matched(costs(values.detach(), labels), self.counted(labels), self.matches)
        ours, theirs = values[sample, place], labels[sample, box]
        reached = overlap(edges(ours[:, :4].detach()), edges(theirs[:, 1:])).to(values.dtype)
        target = torch.zeros_like(values[..., 4:])
        target[sample, place, theirs[:, 0].long()] = reached
        each = quality_focal(values[..., 4:], target).sum((1, 2))
        return each.index_add(0, sample, _of_boxes(ours[:, :4], theirs[:, 1:]))

    def _heard(self, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's likeliest places, (batch, n, 4 + classes), and which of them are boxes."""
        strongest, order = teacher[..., 4:].amax(-1).topk(min(MOST, teacher.shape[1]))
        chosen = teacher.gather(1, order[..., None].expand(-1, -1, teacher.shape[-1]))
        there = strongest.sigmoid() >= HEARD
        if self.nms is not None:
            there &= kept(edges(chosen[..., :4]), chosen[..., 4:].argmax(-1), self.nms)
        return chosen, there

    # What is measured

    def rows(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each picture's detections, (batch, most, 6) as :func:`found` has them, and its labels."""
        return found(answers, nms=self.nms), labels

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return the metrics above."""
        return {"map": Measured(AveragePrecision(outputs), read=dict)}

    def parts(self, outputs: int, names: Sequence[str]) -> ByClass:
        """Return each class's average precision."""
        return ByClass(outputs, names)

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return F1 between the detections of two models: of odds 0.3 and more, one to one, of one class, overlap 0.5.

        A picture in which neither finds anything counts nowhere, unless all are such.
        """
        return {"agreement": Measured(MeanMetric(), _f1)}

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return for each picture whether both models say the same boxes."""
        both, first, second = _common(ours, theirs)
        return (both == first) & (both == second)

    def to_compare(self, answers: Tensor) -> Tensor:
        """Return odds, and boxes in units of their size, weighted by the odds of their place.

        Logits of places where nothing is are large, and tell of nothing; boxes are small numbers, and tell of all.
        """
        values = upcast(answers)
        odds, boxes = values[..., 4:].sigmoid(), values[..., :4]
        sides = boxes[..., 2:].clamp_min(0.01).repeat(*[1] * (boxes.ndim - 1), 2)
        return torch.cat([odds, odds.amax(-1, keepdim=True) * boxes / sides], -1)

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return minus each picture's loss, per box."""
        boxes = self.counted(labels).sum(1) * min(self.matches, answers.shape[1])
        return -self._losses(answers, labels) / boxes.clamp_min(1)

    # What is shown

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return each picture's boxes of odds 0.3 and more, as :meth:`marks` has them."""
        return [self.marks(each, names) for each in answers]

    def marks(self, values: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the boxes of one picture's answer or label: ``box`` (x0, y0, x1, y1 in shares), ``label``, ``odds``.

        Labels are told from answers by their whole numbers of classes.
        """
        is_label = values.shape[-1] == 5 and bool((values[:, 0] == values[:, 0].round()).all())
        classes = max(len(names), int(values[:, 0].max()) + 1) if is_label else values.shape[-1] - 4
        name = named(names, classes)
        rows = values if is_label else found(values[None], nms=self.nms, least=SURE)[0]
        return [
            {
                "box": edges(row[1:5]).clamp(0, 1).tolist(),
                "label": name[int(row[0])],
                "odds": None if is_label else float(row[5]),
            }
            for row in rows.float().cpu()
            if row[0] >= 0
        ]


def _of_boxes(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the loss of pairs of boxes, (pairs, 4) twice: distance of their numbers and missing overlap."""
    theirs = theirs.to(ours.dtype)
    return DISTANCE * (ours - theirs).abs().sum(-1) + OVERLAP * (1 - generalised_overlap(edges(ours), edges(theirs)))


def _common(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many boxes two models have in common in each picture, and how many each has."""
    ours, theirs = (torch.where((x[..., 5:] >= SURE), x, -1.0) for x in (ours, theirs))
    both = hits(ours, theirs, (SAME,))[..., 0].sum(1)
    return both, (ours[..., 0] >= 0).sum(1), (theirs[..., 0] >= 0).sum(1)


def _f1(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return F1 of each picture and its weight, so that the mean is that of all pictures' boxes together."""
    both, first, second = _common(ours, theirs)
    said = (first + second).float()
    return torch.where(said > 0, 2 * both / said.clamp_min(1), 1.0), said.clamp_min(1e-6)
