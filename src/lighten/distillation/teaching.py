"""Teaching: what a student learns from its teacher, whoever writes the training step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lighten.distillation import batch_checks
from lighten.distillation.cache import TeacherCache
from lighten.distillation.cached_teacher import CachedTeacher, check_cacheable
from lighten.distillation.layers import MatchedLayers, matches_of
from lighten.distillation.settings import UNIFORM
from lighten.distillation.teacher import Teacher, check_same_teacher
from lighten.distillation.terms import BatchOutputs, CrossRank, WeightedLosses
from lighten.distillation.tokens import NextTokens
from lighten.errors import UserError
from lighten.utils.batch import Parts
from lighten.utils.inputs import Call

WeighedLosses = Mapping[str, tuple[float, Tensor]]
"""Weight and value of each loss of a batch, by name."""


class Teaching:
    """Teacher, cache, losses and matched layers of one student: what ``DistillationModule`` and ``Distill`` share.

    A plain object: the module or callback that keeps it registers neither teacher nor student.

    Args:
        terms: the losses with their weights.
        teacher: ``None`` where labels alone are learned from.
        student: the model whose layers are compared.
        projections: where what maps the student's widths to the teacher's is kept, so that it learns.
        layers: that are compared, see :func:`match_layers`.
        cache: of the teacher's answers.
        sharded: whether the teacher is.

    Attributes:
        last: the answers of both models to the last batch, by role.

    Raises:
        UserError: for layers that do not match, several teachers whose mean says nothing, or a cache that cannot
            replace the teacher.
    """

    def __init__(
        self,
        terms: WeightedLosses,
        teacher: Teacher | None,
        *,
        student: nn.Module,
        projections: nn.ModuleDict,
        layers: str | Mapping[str, str] = UNIFORM,
        cache: TeacherCache | None = None,
        sharded: bool = False,
    ) -> None:
        self.terms, self.task, self.teacher = terms, terms.task, teacher
        if teacher is not None and len(teacher.modules) > 1 and not self.task.averages:
            raise UserError(
                f"{len(teacher.modules)} teachers: of task={self.task.name!r} the same place of two means other "
                "things, so no mean of them can be taught; give one"
            )
        self.cached_teacher = CachedTeacher(teacher, cache)
        self.layers: MatchedLayers | None = None
        if teacher is not None and terms.compared:
            matches = matches_of(terms.compared, layers, student, teacher.module)
            self.layers = MatchedLayers(matches, student, teacher, projections)
        if cache is not None:
            check_cacheable(terms.compared, task=terms.task, sharded=sharded)
        self.last: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Look again at what labels mean."""
        self._next_tokens = NextTokens()

    def meant(self, student: nn.Module, call: Call, labels: Tensor) -> Tensor:
        """Return what labels stand for: of a causal language model, the tokens that follow."""
        if not self.task.next_tokens:
            return labels
        return self._next_tokens.labels(student, call, labels, [] if self.teacher is None else self.teacher.modules)

    def losses(
        self,
        parts: Parts,
        answers: Tensor,
        labels: Tensor | None,
        *,
        progress: float,
        ranks: CrossRank,
        first: bool,
        look: bool,
        features: Mapping[str, Tensor] | None = None,
        own: Tensor | None = None,
    ) -> WeighedLosses:
        """Return weight and value of every loss whose weight is not zero now; the teacher is asked where one needs it.

        Args:
            parts: what the student was called with, and keys and weights of the samples.
            answers: of the student, with gradient.
            labels: ``None`` where no loss looks at them.
            progress: share of the fit that is done.
            ranks: what the losses need of the other processes.
            first: whether to look at the teacher's answers; later ones show in the loss.
            look: whether to look at values of the batch, for which the host waits.
            features: of the student's layers; by default what was recorded last.
            own: the loss that the student returned, where one asks for it.

        Raises:
            UserError: for weights of samples that are none, or answers of another shape than the teacher's.
        """
        if parts.weights is not None:
            batch_checks.check_weights(parts.weights, len(answers), look=look)
        outputs = BatchOutputs(
            answers, labels, mask=parts.call[1].get("attention_mask"), weights=parts.weights, own=own
        )
        if self.terms.asks_teacher or self.layers is not None:
            outputs.teacher = self.ask(parts, answers.device, first=first)
            batch_checks.check_same_outputs(self.task, answers, outputs.teacher)
        if self.layers is not None:
            outputs.pairs = self.layers.pairs(features)
        self.last = ({} if outputs.teacher is None else {"teacher": outputs.teacher}) | {"student": answers.detach()}
        return self.terms(outputs, progress, ranks)

    def ask(self, parts: Parts, device: torch.device, *, first: bool) -> Tensor:
        """Return the teacher's answers to a training batch, on ``device``, where the batch is; see ``losses``."""
        return self.cached_teacher.logits(parts.call, parts.keys, device, look=first)

    def logged(self, losses: WeighedLosses, total: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """Return each loss and its share of the ``total``, by the names that are logged; ``weight`` is that of all."""
        total = total.detach().clamp_min(1e-12)
        values = {f"distil/{name}": value.detach() for name, (_, value) in losses.items()}
        shares = {name: weight * share * value.detach() / total for name, (share, value) in losses.items()}
        return values | {f"distil/share/{name}": share for name, share in shares.items()}

    @property
    def fingerprint(self) -> str | None:
        """The teacher's; ``None`` without one."""
        return None if self.teacher is None else self.teacher.fingerprint

    def check_resumed(self, saved: str | None) -> None:
        """Raise ``UserError`` if a checkpoint's teacher was another."""
        check_same_teacher(saved, self.fingerprint)

    def describe_non_finite(self) -> str | None:
        """Return whose answers to the last batch are not finite, and to which of its samples; ``None`` if all are."""
        return batch_checks.describe_non_finite(self.last)

    def close(self) -> None:
        """Let go of the models' hooks and of the last batch, and write what is cached still."""
        if self.layers is not None:
            self.layers.close()
        self.last = {}
        self.cached_teacher.refresh()
