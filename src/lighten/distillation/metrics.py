"""Metrics of student and teacher over an evaluation epoch, equal on all ranks."""

from collections.abc import Mapping

from torch import Tensor

from lighten.errors import UserError
from lighten.tasks.losses import IGNORED
from lighten.tasks.scorer import Scorer, likeness_of, scorer_of
from lighten.tasks.task import Task


class EpochMetrics:
    """Metrics of student and teacher over an evaluation epoch, and how far apart they are.

    ``student/…`` and ``teacher/…`` as the task has them (:meth:`Task.metrics`); of those that it reports, and of the
    loss, ``gap/…`` (teacher - student); ``gap/retention``, the share of the leading one that is kept; and
    how alike both answer (:meth:`Task.likeness`), such as ``gap/agreement`` and ``gap/kl``.

    A plain object around torchmetrics: nothing of it is in the state dict of the module that keeps it.

    Args:
        task: what is answered.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._models: dict[str, Scorer] = {}
        self._likeness: Scorer | None = None

    def update(self, answers: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add a batch: labels, and answers of the ``student`` and, where there is one, of the ``teacher``."""
        rows = {}
        for name, values in answers.items():
            if name not in self._models:
                self._models[name] = scorer_of(self.task, self.task.outputs_of(values), values.device)
            rows[name], kept = self.task.rows(values, labels)
            self._models[name].update(rows[name], kept)
        if "teacher" in rows:
            student = answers["student"]
            if self._likeness is None:
                self._likeness = likeness_of(self.task, self.task.outputs_of(student), student.device)
            self._likeness.update(rows["student"], rows["teacher"])

    def compute(self, data: str | None) -> dict[str, Tensor]:
        """Return scalars by the names that are logged; every rank must call it.

        Args:
            data: ``"validation"`` or ``"test"``; ``None`` for a few batches alone, which may have no label that counts.

        Raises:
            UserError: if no label counts.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for name, scorer in self._models.items():
            values = scorer.compute()
            if values is None and data is None:
                return {}
            if values is None:
                raise UserError(
                    f"every label of the {data} data is {IGNORED}, which leaves its sample out; expected some that "
                    "count: label them, or leave these data out"
                )
            found[name] = values
        named = {f"{name}/{metric}": value for name, values in found.items() for metric, value in values.items()}
        likeness = {} if self._likeness is None else self._likeness.compute() or {}
        return named | gaps(self.task, found) | {f"gap/{name}": value for name, value in likeness.items()}


def gaps(task: Task, found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return ``gap/<metric>``, teacher - student, and ``gap/retention``; empty without a teacher.

    Args:
        task: whose reported metrics are compared.
        found: metrics by model.
    """
    if "teacher" not in found:
        return {}
    teacher, student = found["teacher"], found["student"]
    shared = [name for name in dict.fromkeys([*task.reported, "loss"]) if name in teacher and name in student]
    values = {f"gap/{name}": teacher[name] - student[name] for name in shared}
    if task.metric in shared:
        old, new = ({name: float(model[name]) for name in shared} for model in (teacher, student))
        values["gap/retention"] = teacher[task.metric].new_tensor(task.retention(old, new))
    return values
