"""TaughtStep: a module's own training step, with a teacher's losses in the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lighten.distillation.capture import Answer, Capture, Replaced
from lighten.distillation.teaching import Teaching, WeighedLosses
from lighten.distillation.terms import CrossRank
from lighten.errors import UserError
from lighten.schedule import Setting, value_at
from lighten.utils.batch import BatchFormat, Parts
from lighten.utils.inputs import logits_of


@dataclass(frozen=True)
class Moment:
    """Where a fit is.

    Attributes:
        progress: share that is done.
        ranks: what losses need of the other processes.
        first: whether nothing has been learned yet.
        look: whether values may be looked at, for which the host waits.
    """

    progress: float
    ranks: CrossRank
    first: bool
    look: bool


class TaughtStep:
    """Stands in for ``training_step`` and ``manual_backward`` of a module, from ``begin`` to ``end``.

    Args:
        teaching: the losses.
        owner: whose steps these are: a LightningModule.
        part: the name of the part of it that is taught.
        weight: of the losses beside the step's own, a number or a schedule.
        batch_format: how labels, keys and weights are found in a batch.
        outputs: which of several values the part returns is its answer.
        moment: tells where the fit is.
        after: called at the end of each step.

    Attributes:
        told: whether a loss has come from the part yet.
    """

    def __init__(
        self,
        teaching: Teaching,
        owner: nn.Module,
        part: str,
        *,
        weight: Setting,
        batch_format: BatchFormat,
        outputs: str | int | None,
        moment: Callable[[], Moment],
        after: Callable[[], None],
    ) -> None:
        self.teaching, self.owner, self.part, self.weight = teaching, owner, part, weight
        self.batch_format, self.outputs = batch_format, outputs
        self.told = False
        self._student = owner.get_submodule(part)
        self._moment, self._after = moment, after
        self._capture = Capture()
        self._undo: list[Replaced | RemovableHandle] = []
        self._parts: Parts | None = None
        self._taught: list[tuple[WeighedLosses, float, Tensor]] = []

    def begin(self) -> None:
        """Put hooks and stand-ins in place."""
        layers = self.teaching.layers
        if layers is not None:
            layers.record()
        self._capture = Capture(None if layers is None else layers.take)
        self._undo = [
            self._student.register_forward_hook(self._capture, with_kwargs=True),
            Replaced(self.owner, "training_step", self._step),
            Replaced(self.owner, "manual_backward", self._backward),
        ]

    def end(self) -> None:
        """Take them away."""
        while self._undo:
            each = self._undo.pop()
            each.undo() if isinstance(each, Replaced) else each.remove()
        self._taught, self._parts = [], None
        self._capture.take()

    def logged(self) -> dict[str, Tensor]:
        """Return the losses of the step that has just run and their shares, by the names that are logged."""
        each = [self.teaching.logged(losses, total, weight) for losses, weight, total in self._taught]
        names = dict.fromkeys(chain(*each))
        return {name: torch.stack([values[name] for values in each if name in values]).mean() for name in names}

    def _step(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own training step, and add to the loss that it returns."""
        self._taught, self._parts = [], self._split(next(chain(args, kwargs.values())))
        if self.teaching.layers is not None:
            self.teaching.layers.forget()
        self._capture.on = True
        try:
            output = step(*args, **kwargs)
            if self.owner.automatic_optimization:
                output = self._added(output)
        finally:
            self._capture.on = False
            self._capture.take()
        self._after()
        return output

    def _added(self, output: Any) -> Any:
        """Return what the step returned, with the teacher's losses in its loss."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            return output
        answers = self._capture.take()
        if not answers:
            raise UserError(
                f"{type(self.owner).__name__}.training_step did not call {named(self.part)} on this batch, so there is "
                "nothing to teach (a call of its .forward passes by); return None from such steps, or name another "
                "part as module"
            )
        total = self._with_teacher(loss, answers)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def _backward(self, backward: Any, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward by hand, from the loss and what the teacher says of the answers that it comes from."""
        answers = self._capture.take(loss)
        self.told = self.told or bool(answers)
        backward(self._with_teacher(loss, answers), *args, **kwargs)

    def _with_teacher(self, loss: Tensor, answers: Sequence[Answer]) -> Tensor:
        """Return ``loss`` and the weighted losses of these answers."""
        moment = self._moment()
        weight, self._capture.on = value_at(self.weight, moment.progress), False
        found = [(answer, logits_of(answer.output, self.outputs)) for answer in answers] if weight else []
        found = [(answer, logits) for answer, logits in found if logits.requires_grad]
        if self.teaching.cached_teacher.cache is not None and len(found) + len(self._taught) > 1:
            raise UserError(
                f"cache keeps one answer a sample, and a step calls {named(self.part)} several times; leave the cache "
                "out"
            )
        each = [self._losses(answer, logits, moment) for answer, logits in found]
        terms = [share * value for losses in each for share, value in losses.values()]
        self.told = self.told or bool(terms) or (not weight and bool(answers))
        if terms:
            taught = torch.stack(terms).sum() / len(each)
            loss = loss + weight * taught.to(loss.device)
            self._taught += [
                ({name: (share, value.detach()) for name, (share, value) in losses.items()}, weight, loss.detach())
                for losses in each
            ]
        self._capture.on = True
        return loss

    def _losses(self, answer: Answer, logits: Tensor, moment: Moment) -> WeighedLosses:
        """Return weight and value of each loss of one answer."""
        given, labels = self._parts or Parts(answer.call), None
        if self.teaching.terms.needs_labels:
            labels = self.teaching.task.check_labels(given.labels)
            labels = self.teaching.meant(self._student, answer.call, labels)
            self.teaching.task.check_answers(logits, labels, look=moment.look)
        return self.teaching.losses(
            Parts(answer.call, labels, given.keys, given.weights), logits, labels, progress=moment.progress,
            ranks=moment.ranks, first=moment.first, look=moment.look, features=answer.features,
        )  # fmt: skip

    def _split(self, batch: Any) -> Parts | None:
        """Return the parts of a batch, where labels, keys or weights are asked for."""
        if self.teaching.terms.needs_labels:
            return self.batch_format.labelled(batch)
        needed = self.teaching.cached_teacher.cache is not None or self.batch_format.weighted
        return self.batch_format.split(batch) if needed else None


def named(part: str) -> str:
    """Return how messages call a part."""
    return repr(part) if part else "the module"
