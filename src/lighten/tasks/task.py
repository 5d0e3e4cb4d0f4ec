"""Task: all that depends on the kind of answer that a network gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lighten.errors import UserError
from lighten.tasks.losses import IGNORED


class Meaning(NamedTuple):
    """How a figure is called and shown.

    Attributes:
        label: its name in tables.
        format: ``"percent"``, ``"number"``, ``"decibel"`` or ``"amount"`` (in the task's unit).
        lower_is_better: whether less is more.
    """

    label: str
    format: str = "number"
    lower_is_better: bool = False


def both(answers: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return what most metrics are updated with."""
    return answers, labels


@dataclass
class Measured:
    """A metric of torchmetrics, with its inputs and the names of its results.

    Attributes:
        metric: its state is summed over ranks.
        feed: from outputs and labels (or the outputs of two models) to the arguments of its ``update``.
        read: from its result to scalars by name; by default one scalar with the metric's name.
        least: the smallest number of rows that it needs.
    """

    metric: Metric
    feed: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = both
    read: Callable[[Any], dict[str, Tensor]] | None = None
    least: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: everything in the package that depends on the kind of output.

    Your own task is a subclass with its ``reported`` metrics, ``loss``, ``soft_loss`` and ``metrics``; the other
    attributes and methods have defaults. The fields of the dataclass are its settings, of JSON types.

    Attributes:
        name: under which it is registered.
        reported: the metrics of scores and reports, the leading one first.
        alike: the figures of agreement between two models that ``likeness`` returns, the leading one first.
        label_loss: the name of the loss on labels among ``losses``.
        taught_by: the losses on a teacher's outputs that are valid for this task.
        temperature: default temperature of the soft labels.
        channel_dim: the dimension of outputs that has classes, targets or channels.
        label_dims: allowed numbers of dimensions of a batch of labels; empty: any.
        answer_dims: number of dimensions of a batch of outputs; ``None``: any.
        label_text: the expected format of labels, for messages.
        answer_text: the expected format of outputs, for messages.
        ranks: whether outputs are logits of classes, of which the largest is the answer.
        per_token: whether there is an output for each token of a text; an ``attention_mask`` may exclude some.
        next_tokens: whether labels that repeat the tokens of a causal language model mean the tokens that follow.
        averages: whether the mean of several teachers' outputs is a valid output.
        reads: the type of labels in a table or folder: ``"classes"``, ``"flags"``, ``"numbers"``, ``"pictures"``,
            ``"boxes"`` or ``"points"``.
        head: the head to choose for named models that have several.
        pipelines: its names on model hubs, by input type: ``"image"``, ``"text"`` or ``"table"``.
        exhibit: what a report shows: ``"confusion"``, ``"scatter"``, ``"pictures"``, or ``""`` for nothing.
    """

    name: ClassVar[str] = ""
    reported: ClassVar[Mapping[str, Meaning]] = {}
    alike: ClassVar[Mapping[str, Meaning]] = {}
    label_loss: ClassVar[str] = "labels"
    taught_by: ClassVar[tuple[str, ...]] = ("soft_labels",)
    temperature: ClassVar[float] = 4.0
    channel_dim: ClassVar[int] = 1
    label_dims: ClassVar[tuple[int, ...]] = ()
    answer_dims: ClassVar[int | None] = None
    label_text: ClassVar[str] = "a tensor (batch, …)"
    answer_text: ClassVar[str] = "(batch, …)"
    ranks: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    next_tokens: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    reads: ClassVar[str] = "numbers"
    head: ClassVar[str] = "classification"
    pipelines: ClassVar[Mapping[str, str]] = {}
    exhibit: ClassVar[str] = ""

    @property
    def metric(self) -> str:
        """The metric that leads: of which the best checkpoint is kept and of which ``retention`` speaks."""
        return next(iter(self.reported))

    @property
    def lower_is_better(self) -> bool:
        """Whether less of the leading metric is better."""
        return self.reported[self.metric].lower_is_better

    def settings(self) -> dict[str, Any]:
        """Return name and settings in JSON types, from which ``task_of`` makes the same again."""
        return {"name": self.name, **{key: _plain(value) for key, value in asdict(self).items()}}

    def misunderstands(self, other: "Task") -> str | None:
        """Return why answers to ``other`` mean something else here, the end of a sentence; ``None`` if they do not."""
        return None if self.name == other.name else f"answers task {other.name}, the data are of {self.name}"

    # What is given to a loss

    def check_labels(self, labels: Any) -> Tensor:
        """Return the labels of a batch.

        Raises:
            UserError: if they are no tensor, or have another shape or dtype than the task's.
        """
        if not isinstance(labels, Tensor):
            raise UserError(
                f"labels are of type {type(labels).__name__}, expected a tensor; convert them in the data set"
            )
        if self.label_dims and labels.ndim not in self.label_dims:
            raise UserError(f"labels have shape {tuple(labels.shape)}, expected {self.label_text}")
        return labels

    def check_answers(self, answers: Tensor, labels: Tensor, *, outputs: int | None = None, look: bool = True) -> None:
        """Raise ``UserError`` unless labels and a student's answers fit, and labels are in the task's range.

        Args:
            answers: of the student.
            labels: as ``check_labels`` returns them.
            outputs: classes, targets or channels of the data, where their number is known.
            look: whether to look at values as well, for which the host waits.
        """
        if self.answer_dims is not None and answers.ndim != self.answer_dims:
            raise UserError(
                f"the student returns {self.answers_are} of shape {tuple(answers.shape)}, expected {self.answer_text}"
            )
        found = self.outputs_of(answers)
        if answers.ndim and outputs is not None and found != outputs:
            raise UserError(f"the student gives {found} {self.outputs_are}, the data have {outputs}")
        if not self.fits(answers, labels):
            raise UserError(
                f"labels have shape {tuple(labels.shape)}, the student's {self.answers_are} {tuple(answers.shape)}; "
                f"expected {self.fit_text}"
            )
        if look and (problem := self.range_problem(labels, outputs or found)):
            raise UserError(problem)

    answers_are: ClassVar[str] = "answers"
    outputs_are: ClassVar[str] = "outputs"
    fit_text: ClassVar[str] = "one label for each answer"
    none_text: ClassVar[str] = f"{IGNORED}, which is ignored; expected class numbers; check how labels are made"

    def outputs_of(self, answers: Tensor) -> int:
        """Return how many classes, targets or channels answers have."""
        return answers.shape[self.channel_dim] if answers.ndim > 1 or self.channel_dim < answers.ndim else 1

    def comparable(self, ours: Tensor, theirs: Tensor) -> bool:
        """Return whether answers of these shapes can be held against each other."""
        return ours.shape == theirs.shape

    def fits(self, answers: Tensor, labels: Tensor) -> bool:
        """Return whether these shapes belong together."""
        return len(answers) == len(labels)

    def label_shape(self, samples: int, outputs: int, tokens: Sequence[int] | None) -> tuple[int | None, ...] | None:
        """Return the shape that a batch of labels must have, ``None`` for a size that may be any; ``None`` for any.

        Args:
            samples: of the batch.
            outputs: classes, targets or channels.
            tokens: the shape of its token ids, where it has some.
        """
        return None

    def bad_labels(self, labels: Tensor, outputs: int) -> Tensor | None:
        """Return which labels are out of range, a mask of their shape; ``None`` where any may be."""
        return None

    def bad_text(self, labels: Tensor, bad: Tensor) -> str:
        """Return the first of the ``bad_labels`` in words."""
        return f"label {labels[bad][0].item():g}"

    def range_text(self, outputs: int) -> str:
        """Return what labels are expected to be, and how they become so, for messages about ``bad_labels``."""
        return self.label_text

    def range_problem(self, labels: Tensor, outputs: int) -> str | None:
        """Return what is wrong with the values of labels in a line, ``None`` if nothing is."""
        bad = self.bad_labels(labels, outputs)
        if bad is None or not bool(bad.any()):
            return None
        return f"there is a {self.bad_text(labels, bad)}, expected {self.range_text(outputs)}"

    # What is learned

    def loss(self, answers: Tensor, labels: Tensor, *, smoothing: float = 0.0, count: Tensor | None = None,
             weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the loss on labels, a scalar.

        Args:
            answers: with gradient.
            labels: as ``check_labels`` returns them.
            smoothing: of labels, where that has a meaning.
            count: what to divide by instead of the number of places that count (``counted``).
            weights: of samples, (batch,).
        """
        raise NotImplementedError

    def soft_loss(self, answers: Tensor, teacher: Tensor, temperature: float, *, mask: Tensor | None = None,
                  count: Tensor | None = None, weights: Tensor | None = None) -> Tensor:  # fmt: skip
        """Return the loss against a teacher's answers, a scalar.

        Args:
            answers: with gradient.
            teacher: of the same shape.
            temperature: above zero.
            mask: zero at places that count nowhere (``places``).
            count: as ``loss`` takes it.
            weights: of samples, (batch,).
        """
        raise NotImplementedError

    def counted(self, labels: Tensor) -> Tensor | None:
        """Return which labels count, where some may not and ranks must agree on their number; else ``None``."""
        return None

    def places(self, labels: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Return which places of the answers a teacher is heard at; ``None`` for all."""
        return None

    # What is measured

    def rows(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return answers and labels that count, a row an answer, for metrics."""
        return answers.float(), labels

    def metrics(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return fresh metrics by name; each is fed with ``rows``. Those in ``reported`` must be among them."""
        raise NotImplementedError

    def likeness(self, outputs: int) -> Mapping[str, Metric | Measured]:
        """Return fresh metrics of how alike two models answer; each is fed with the rows of both, the student's first.

        Those in ``alike`` must be among them.
        """
        return {}

    def same(self, ours: Tensor, theirs: Tensor) -> Tensor | None:
        """Return for each row whether two models mean the same, bool; ``None`` where answers are never quite equal."""
        return None

    def to_compare(self, answers: Tensor) -> Tensor:
        """Return answers on a scale on which equal differences mean as much, by which rounding errors are ranked."""
        return answers

    def parts(self, outputs: int, names: Sequence[str]) -> "PartScores | None":
        """Return what tells a model's quality part by part, such as class by class; ``None`` where nothing does."""
        return None

    def sample_scores(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return one number a sample, more for better, by which the worst are found."""
        each = [self.loss(answers[i : i + 1], labels[i : i + 1]) for i in range(len(answers))]
        return -torch.stack(each)

    def retention(self, reference: Mapping[str, float], compressed: Mapping[str, float]) -> float:
        """Return what share of its quality a model keeps, from the metrics of both.

        The ratio of the leading metric, turned round where lower is better, so that 0.99 always is a hundredth less.
        """
        old, new = reference[self.metric], compressed[self.metric]
        if self.lower_is_better:
            old, new = new, old
        return float(new / old) if old > 0 else 0.0

    def drop(self, reference: Mapping[str, float], compressed: Mapping[str, float]) -> float:
        """Return what a model loses: points of a leading metric that is a share, else the share of its quality."""
        if self.reported[self.metric].format == "percent" and not self.lower_is_better:
            return reference[self.metric] - compressed[self.metric]
        return 1.0 - self.retention(reference, compressed)

    # What is shown

    def readable(self, answers: Tensor, names: Sequence[str]) -> list[Any]:
        """Return each sample's answer as a person reads it: JSON types, or an array of a picture."""
        return [row.tolist() for row in answers]

    def picture(self, values: Tensor) -> Tensor:
        """Return one sample's answer or label as a picture: classes (height, width), or uint8 (height, width, 3)."""
        raise NotImplementedError

    def marks(self, values: Tensor, names: Sequence[str]) -> list[dict[str, Any]] | None:
        """Return what one sample's answer or label marks in its input picture; ``None`` where it is a picture itself.

        Args:
            values: an answer, or a label.
            names: of the classes.

        Returns:
            Mappings of JSON types: ``box`` (x0, y0, x1, y1 as shares of the picture) or ``point`` (x, y), with
            ``label`` and ``odds`` (``None`` of a label).
        """
        return None


class PartScores:
    """Quality part by part, from rows.

    Attributes:
        kind: what a part is, such as ``"class"``.
        metric: what is told of each, by the name of a column.
        meaning: how that is shown.
    """

    kind: str
    metric: str
    meaning: Meaning

    def update(self, answers: Tensor, labels: Tensor) -> None:
        """Add rows."""
        raise NotImplementedError

    def compute(self) -> tuple[list[str], list[float | None]]:
        """Return names and values of the parts; ``None`` for one without samples."""
        raise NotImplementedError


def named(names: Sequence[str], outputs: int) -> list[str]:
    """Return the names of classes, labels or targets; their numbers where there is not a name for each."""
    return [str(name) for name in names] if len(names) == outputs else [str(i) for i in range(outputs)]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
