"""Scores of tasks over batches of uneven size."""

import torch

from lighten.tasks import task_of
from lighten.tasks.scorer import likeness_of, scorer_of

PARTS = (slice(0, 32), slice(32, 49), slice(49, 50))


CPU = torch.device("cpu")


def scored(outputs: int, answers: torch.Tensor, labels: torch.Tensor, task="classification") -> dict[str, float]:
    scores = scorer_of(task_of(task), outputs, CPU)
    for part in PARTS:
        scores.update(*task_of(task).rows(answers[part], labels[part]))
    return {name: value.item() for name, value in scores.compute().items()}


def alike(outputs: int, ours: torch.Tensor, theirs: torch.Tensor, task="classification") -> dict[str, float]:
    scores = likeness_of(task_of(task), outputs, CPU)
    for part in PARTS:
        scores.update(ours[part], theirs[part])
    return {name: value.item() for name, value in scores.compute().items()}
