"""Quality of files: by a task's metrics, or by what a LightningModule of somebody's own logs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lighten.delivery.measure.measure import BATCH_SIZES, measure
from lighten.delivery.measure.pair import measure_pair
from lighten.delivery.measure.scores import SCHEMA, compare, describe_task, write_scores
from lighten.errors import UserError
from lighten.search.confirm import Confirmation, confirm_drop, safe_drop
from lighten.search.needs import Needs
from lighten.search.splits import Splits
from lighten.search.subject import Subject
from lighten.tasks.scorer import scorer_of
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat
from lighten.utils.inputs import logits_of, run

SHUFFLES = 20
"""How often answers are given to the wrong samples, to see what a network that knows nothing would come to."""


class Quality(Protocol):
    """How good a file is."""

    @property
    def metric(self) -> str:
        """The name of what leads."""

    @property
    def lower_is_better(self) -> bool:
        """Its direction."""

    def measure(
        self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs, *, confirming: int
    ) -> dict[str, Any]:
        """Measure a file in turn with the original's, write ``scores.json``, return figures, drop and its bound.

        Args:
            folder: of the trial.
            original: file of the original.
            file: of the trial.
            loader: labelled batches.
            needs: say how latency is taken.
            confirming: samples that the choice has to stand on later.
        """

    def original(self, file: Path, splits: Splits, needs: Needs) -> dict[str, Any]:
        """Return ``metric`` on the part that is chosen on, ``guide`` on the part that guides, and the figures."""

    def confirm(self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs) -> Confirmation:
        """Return the drop on samples that nothing was chosen on, with its bound, and write ``scores.json``."""

    def check_trained(self, subject: Subject, splits: Splits) -> None:
        """Refuse a network that knows nothing.

        Raises:
            UserError: if its answers are no better than answers given to the wrong samples.
        """

    def drop(self, reference: float, value: float) -> float:
        """Return what is lost between two values of the metric."""


@dataclass(frozen=True)
class ByTask:
    """By the leading metric of a task."""

    task: Task

    @property
    def metric(self) -> str:
        """What leads."""
        return self.task.metric

    @property
    def lower_is_better(self) -> bool:
        """Its direction."""
        return self.task.lower_is_better

    def drop(self, reference: float, value: float) -> float:
        """Return what is lost between two values of the metric."""
        return self.task.drop({self.metric: reference}, {self.metric: value})

    def measure(
        self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs, *, confirming: int
    ) -> dict[str, Any]:
        """Measure a file in turn with the original's, and write ``scores.json``."""
        found, figures = self._pair(folder, original, file, loader, needs)
        return {**reckoned(found, confirming), **figures}

    def original(self, file: Path, splits: Splits, needs: Needs) -> dict[str, Any]:
        """Return the original's metric on both parts, and its figures."""
        size = [needs.batch]
        found = measure(file, splits.select, threads=needs.threads, batch_sizes=size, task=self.task)
        guide = measure(file, splits.guide, threads=needs.threads, batch_sizes=[], task=self.task)
        return {"metric": found[self.metric], "guide": guide[self.metric], **figures_of(found, needs)}

    def confirm(self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs) -> Confirmation:
        """Return the drop on samples that nothing was chosen on, with its bound."""
        return self._pair(folder, original, file, loader, needs)[0]

    def check_trained(self, subject: Subject, splits: Splits) -> None:
        """Compare the network's answers with the same answers given to other samples."""
        form = BatchFormat(nameable=False)
        batches = [form.labelled(batch) for batch in splits.guide]
        with torch.no_grad():
            answers = [logits_of(run(subject.network, parts.call)).float() for parts in batches]
        labels = [self.task.check_labels(torch.as_tensor(parts.labels)) for parts in batches]
        for one, label in zip(answers, labels, strict=True):
            self.task.check_answers(one, label)
        own = self._metric(answers, labels)
        draws = torch.Generator().manual_seed(0)
        others = [
            self._metric([one[torch.randperm(len(one), generator=draws)] for one in answers], labels)
            for _ in range(SHUFFLES)
        ]
        sign = -1.0 if self.lower_is_better else 1.0
        middle, spread = float(np.mean(others)), float(np.std(others))
        if not sign * (own - middle) > max(4 * spread, 1e-6 * abs(middle)):
            raise UserError(
                f"the model is not trained: its {self.metric} is {own:.4g}, and {middle:.4g} with its answers given "
                "to the wrong samples; train it first"
            )

    def _metric(self, answers: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
        scorer = scorer_of(self.task, self.task.outputs_of(answers[0]), torch.device("cpu"))
        for one, label in zip(answers, labels, strict=True):
            scorer.update(*self.task.rows(one, label))
        return float((scorer.compute() or {})[self.metric])

    def _pair(
        self, folder: Path, original: Path, file: Path, loader: Any, needs: Needs
    ) -> tuple[Confirmation, dict[str, Any]]:
        sizes = latency_sizes(needs)
        one, other, answers = measure_pair(self.task, original, file, loader, threads=needs.threads, batch_sizes=sizes)
        ratios = compare(self.task, one, other)
        scores: Any = {
            "schema": SCHEMA, "recipe": "compress", "task": describe_task(self.task),
            "models": {"teacher": None, "student": one, "compressed": other},
            "comparison": {**ratios, "likeness": {}}, "parts": {}, "provenance": {},
        }  # fmt: skip
        write_scores(folder, scores)
        found = confirm_drop(self.task, answers.labels, answers.original, answers.compressed, max_drop=needs.max_drop)
        timed = {"original_ms": one["latency_ms"][f"batch_{needs.batch}"]["median"]}
        return found, {"metric": other[self.metric], **figures_of(other, needs), **timed}


def latency_sizes(needs: Needs) -> list[int]:
    """Return the batch sizes that are timed: the one that is asked for, and those that reports show."""
    return sorted({*BATCH_SIZES, needs.batch})


def reckoned(found: Confirmation, confirming: int) -> dict[str, float]:
    """Return a drop on the part that is chosen on, and what it stands for on the part that confirms.

    Returns:
        ``drop`` as measured; ``expected``, the bound there if the drop is the same; ``bound``, that is likely not to be
        exceeded, by which the choice is made.
    """
    own = max(0.0, found.bound - found.drop)
    expected = found.drop + own * math.sqrt(found.samples / confirming)
    return {"drop": found.drop, "expected": expected, "bound": safe_drop(found, confirming)}


def figures_of(scores: Mapping[str, Any], needs: Needs) -> dict[str, float]:
    """Return the figures that needs speak of."""
    return {
        "latency_ms": scores["latency_ms"][f"batch_{needs.batch}"]["median"],
        "bytes": scores["bytes"], "macs": scores["macs"], "parameters": scores["parameters"],
    }  # fmt: skip
