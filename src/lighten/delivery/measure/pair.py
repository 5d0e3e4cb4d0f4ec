"""Measurement of a compressed file against its original's, on the same samples and in turn."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from torch import Tensor

from lighten.delivery.measure.evaluate import evaluate
from lighten.delivery.measure.latency import batch_of, interleaved_latency
from lighten.delivery.measure.measure import batches_of, model_scores
from lighten.delivery.measure.scores import ModelScores
from lighten.delivery.runtimes.runners import Model, open_runner
from lighten.tasks.task import Task
from lighten.utils.batch import BatchFormat

SECONDS = 1.0
"""How long each batch size is timed."""


@dataclass
class Answers:
    """What both answered, batch by batch."""

    labels: list[Tensor] = field(default_factory=list)
    original: list[Tensor] = field(default_factory=list)
    compressed: list[Tensor] = field(default_factory=list)

    def keep(self, labels: Tensor, rows: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add a batch, as a listener of ``evaluate``."""
        self.labels.append(labels)
        self.original.append(found["original"][0])
        self.compressed.append(found["compressed"][0])


def measure_pair(
    task: Task,
    original: Model,
    compressed: Model,
    dataloader: Iterable[Any],
    *,
    threads: int = 1,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = SECONDS,
) -> tuple[ModelScores, ModelScores, Answers]:
    """Return what is measured of the original and of the compressed model, and what they answer.

    That is quality, size, and latency, taken in turn.

    Raises:
        UserError: as :func:`~lighten.delivery.measure.measure.measure`.
    """
    batches = iter(dataloader)
    with ExitStack() as stack:
        given = {"original": original, "compressed": compressed}
        runners = {name: stack.enter_context(open_runner(model, threads=threads)) for name, model in given.items()}
        first = list(islice(batches, 1))
        answers = Answers()
        found = evaluate(task, runners, chain(first, batches), listeners=[answers.keep])
        call = BatchFormat().split(first[0]).call
        latency = interleaved_latency(runners, batches_of(call, batch_sizes), seconds=seconds)
        one, other = (
            model_scores(runner, runner.count(batch_of(call, 1)), found.metrics[name], latency[name])
            for name, runner in runners.items()
        )
        return one, other, answers
