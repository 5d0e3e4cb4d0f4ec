from typing import ClassVar

import numpy as np
import pytest
import torch
from torchmetrics import PearsonCorrCoef

from lighten.search.resample import Rows, Sums, Weighted, resampled
from lighten.tasks import task_of
from lighten.tasks.regression import Regression
from lighten.tasks.scorer import scorer_of
from lighten.tasks.task import Measured

CPU = torch.device("cpu")

TASKS = ("multilabel", "regression", "segmentation", "image", "token_classification", "masked_lm")


def data_of(name, n=90):
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    if name == "multilabel":
        labels = torch.randint(0, 2, (n, 4), generator=g).float()
        return labels, 2 * labels - 1 + normal(n, 4), 4
    if name == "regression":
        labels = normal(n, 2)
        return labels, labels + 0.3 * normal(n, 2), 2
    if name == "image":
        labels = normal(n, 1, 6, 6)
        return labels, labels + 0.3 * normal(n, 1, 6, 6), 1
    shape = (n, 5, 5) if name == "segmentation" else (n, 7)
    labels = torch.randint(0, 3, shape, generator=g)
    labels[0], labels[1, ..., 2:] = -100, -100
    answers = 2 * torch.nn.functional.one_hot(labels.clamp_min(0), 3) + normal(*shape, 3)
    return labels, answers.movedim(-1, 1) if name == "segmentation" else answers, 3


@pytest.mark.parametrize("name", TASKS)
def test_weighted_samples_are_samples_repeated(name):
    """Against torchmetrics on the repeated samples, of every task."""
    task = task_of(name)
    labels, answers, outputs = data_of(name)
    weights = np.random.default_rng(0).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), 3)
    found = resampled(task, list(zip(labels.split(32), answers.split(32), strict=True)))
    assert isinstance(found, Sums)
    for value, each in zip(found.values(weights.astype(float)), weights, strict=True):
        drawn = torch.from_numpy(np.repeat(np.arange(len(labels)), each))
        scorer = scorer_of(task, outputs, CPU)
        scorer.update(*task.rows(answers[drawn], labels[drawn]))
        assert value == pytest.approx(float(scorer.compute()[task.metric]), abs=1e-5)


def test_boxes_are_matched_once_and_then_weighted():
    """Against the metric on the pictures that were drawn, of random boxes; two networks are told apart."""
    task = task_of("detection")
    g = torch.Generator().manual_seed(0)
    size = 0.2 + 0.3 * torch.rand(40, 4, 2, generator=g)
    boxes = torch.cat([size / 2 + torch.rand(40, 4, 2, generator=g) * (1 - size), size], -1)
    labels = torch.cat([torch.randint(-1, 3, (40, 4, 1), generator=g), boxes], -1)
    near = (boxes + 0.03 * torch.randn(40, 4, 4, generator=g)).repeat(1, 3, 1)
    answers = torch.cat([near, torch.randn(40, 12, 3, generator=g)], -1)
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 5)
    found = resampled(task, list(zip(labels.split(16), answers.split(16), strict=True)))
    assert isinstance(found, Weighted)
    for value, each in zip(found.values(weights.astype(float)), weights, strict=True):
        drawn = torch.from_numpy(np.repeat(np.arange(40), each))
        scorer = scorer_of(task, 3, CPU)
        scorer.update(*task.rows(answers[drawn], labels[drawn]))
        assert value == pytest.approx(float(scorer.compute()["map"]), abs=1e-9)
    assert np.array_equal(found.rows, resampled(task, [(labels, answers)]).rows)
    assert not np.array_equal(found.rows, resampled(task, [(labels, answers + 0.001)]).rows)


class Correlated(Regression):
    reported: ClassVar = {"correlation": Regression.reported["pearson"]}

    def metrics(self, outputs):
        return {"correlation": Measured(PearsonCorrCoef(), lambda a, b: (a[:, 0], b[:, 0]))}


def test_a_metric_that_does_not_add_up_sees_all_rows():
    labels, answers, _ = (x[:, :1] if isinstance(x, torch.Tensor) else x for x in data_of("regression"))
    weights = np.random.default_rng(0).multinomial(90, np.full(90, 1 / 90), 3)
    found = resampled(Correlated(), list(zip(labels.split(32), answers.split(32), strict=True)))
    assert isinstance(found, Rows)
    for value, each in zip(found.values(weights.astype(float)), weights, strict=True):
        drawn = np.repeat(np.arange(90), each)
        assert value == pytest.approx(np.corrcoef(labels[drawn, 0], answers[drawn, 0])[0, 1], abs=1e-5)
