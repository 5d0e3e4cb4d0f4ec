import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from lighten.distillation.scores import Scores


def test_scores_equal_scikit_learn_over_uneven_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=draw)
    labels = torch.randint(0, 3, (50,), generator=draw)  # class 3 is predicted but never true
    scores = Scores(4, torch.device("cpu"))
    for part in (slice(0, 32), slice(32, 49), slice(49, 50)):
        scores.update(logits[part], labels[part])
    found = {name: value.item() for name, value in scores.compute("student").items()}
    picked = logits.argmax(1)
    assert found == {
        "student/accuracy": pytest.approx(accuracy_score(labels, picked), rel=1e-6),
        "student/macro_f1": pytest.approx(f1_score(labels, picked, average="macro"), rel=1e-6),
        "student/loss": pytest.approx(log_loss(labels, logits.double().softmax(1), labels=range(4)), rel=1e-5),
    }


def test_a_loss_that_is_nan_is_not_hidden() -> None:
    scores = Scores(2, torch.device("cpu"))
    scores.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]))
    assert scores.compute("student")["student/loss"].isnan()
