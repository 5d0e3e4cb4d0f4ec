import numpy as np
import pytest
import torch
from sklearn.metrics import (
    f1_score,
    log_loss,
)
from task_scoring import CPU, scored

from lighten.tasks import build_task, task_of
from lighten.tasks.scorer import scorer_of


def test_scores_of_several_labels_equal_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=draw), torch.rand(50, 4, generator=draw).round()
    picked, likely = (logits > 0).int(), torch.sigmoid(logits.double()).numpy()
    found = scored(4, logits, labels, "multilabel")
    each = f1_score(labels, picked, average=None)
    assert found == {
        "accuracy": pytest.approx((picked == labels).double().mean().item(), rel=1e-6),
        "macro_f1": pytest.approx(each.mean(), rel=1e-6),
        "worst_class": pytest.approx(each.min(), rel=1e-6),
        "loss": pytest.approx(
            np.mean([log_loss(labels[:, c], likely[:, c], labels=[0, 1]) for c in range(4)]), rel=1e-5
        ),
    }


def test_a_loss_that_is_nan_is_not_hidden() -> None:
    scores = scorer_of(task_of("classification"), 2, CPU)
    scores.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]))
    assert scores.compute()["loss"].isnan()


def test_pictures_are_scored_in_decibels() -> None:
    draw = torch.Generator().manual_seed(0)
    task = build_task("image", mean=[0.4], std=[0.2], data_range=1.0)
    labels = torch.randn(50, 1, 8, 8, generator=draw)
    answers = labels + 0.5 * torch.randn(50, 1, 8, 8, generator=draw)
    found = scored(1, answers, labels, task)
    x, y = (v.double().numpy() * 0.2 + 0.4 for v in (answers, labels))
    each = [10 * np.log10(1 / ((a - b) ** 2).mean()) for a, b in zip(x, y, strict=True)]
    assert found["psnr"] == pytest.approx(np.mean(each), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-5)
    assert task.sample_scores(answers, labels).numpy() == pytest.approx(np.array(each), rel=1e-4)
    assert scored(1, labels, labels, task)["psnr"] == pytest.approx(100)
