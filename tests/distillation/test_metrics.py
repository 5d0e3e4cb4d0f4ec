import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from lighten.distillation.metrics import Agreement, TaskMetrics

PARTS = (slice(0, 32), slice(32, 49), slice(49, 50))


def scored(outputs: int, answers: torch.Tensor, labels: torch.Tensor, task: str = "classification") -> dict[str, float]:
    scores = TaskMetrics(outputs, torch.device("cpu"), task)
    for part in PARTS:
        scores.update(answers[part], labels[part])
    return {name: value.item() for name, value in scores.compute("student").items()}


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for low, high in zip(np.arange(bins) / bins, (np.arange(bins) + 1) / bins, strict=True):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    return total


def test_scores_equal_scikit_learn_over_uneven_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=draw)
    labels = torch.randint(0, 3, (50,), generator=draw)  # class 3 is predicted but never true
    picked, likely = logits.argmax(1), logits.double().softmax(1).numpy()
    assert scored(4, logits, labels) == {
        "student/accuracy": pytest.approx(accuracy_score(labels, picked), rel=1e-6),
        "student/macro_f1": pytest.approx(f1_score(labels, picked, average="macro"), rel=1e-6),
        "student/worst_class": pytest.approx(recall_score(labels, picked, average=None, zero_division=1).min()),
        "student/ece": pytest.approx(calibration_error(likely, labels.numpy()), rel=1e-5),
        "student/loss": pytest.approx(log_loss(labels, likely, labels=range(4)), rel=1e-5),
    }


def test_scores_of_several_labels_equal_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=draw), torch.rand(50, 4, generator=draw).round()
    picked, likely = (logits > 0).int(), torch.sigmoid(logits.double()).numpy()
    found = scored(4, logits, labels, "multilabel")
    each = f1_score(labels, picked, average=None)
    assert found == {
        "student/accuracy": pytest.approx((picked == labels).double().mean().item(), rel=1e-6),
        "student/macro_f1": pytest.approx(each.mean(), rel=1e-6),
        "student/worst_class": pytest.approx(each.min(), rel=1e-6),
        "student/loss": pytest.approx(
            np.mean([log_loss(labels[:, c], likely[:, c], labels=[0, 1]) for c in range(4)]), rel=1e-5
        ),
    }


@pytest.mark.parametrize("targets", [1, 3])
def test_scores_of_a_regression_equal_scipy(targets) -> None:
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(50, targets, generator=draw), torch.randn(50, targets, generator=draw)
    found = scored(targets, values, labels[:, 0] if targets == 1 else labels, "regression")
    each = [pearsonr(values[:, i], labels[:, i])[0] for i in range(targets)]
    assert found["student/pearson"] == pytest.approx(np.mean(each), abs=1e-5)
    assert found["student/worst_class"] == pytest.approx(min(each), abs=1e-5)
    assert found["student/loss"] == pytest.approx((values - labels).square().mean().item(), rel=1e-5)


def test_masked_language_models_are_scored_where_there_is_a_label() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, 7, generator=draw), torch.randint(0, 7, (50, 6), generator=draw)
    labels[torch.rand(50, 6, generator=draw) < 0.7] = -100
    there = labels != -100
    found = scored(7, logits, labels, "masked_lm")
    assert found["student/accuracy"] == pytest.approx((logits.argmax(-1) == labels)[there].double().mean().item())
    expected = torch.nn.functional.cross_entropy(logits[there].double(), labels[there]).item()
    assert found["student/loss"] == pytest.approx(expected, rel=1e-5)


def test_likeness_is_agreement_and_divergence_from_the_teacher() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 50, 4, generator=draw)
    agreement = Agreement(torch.device("cpu"))
    for part in PARTS:
        agreement.update(student[part], teacher[part], torch.zeros(50)[part])
    found = {name: value.item() for name, value in agreement.compute().items()}
    p, q = (x.double().softmax(1) for x in (teacher, student))
    assert found == {
        "gap/agreement": pytest.approx((student.argmax(1) == teacher.argmax(1)).double().mean().item(), rel=1e-6),
        "gap/kl": pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5),
    }


def test_a_loss_that_is_nan_is_not_hidden() -> None:
    scores = TaskMetrics(2, torch.device("cpu"))
    scores.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]))
    assert scores.compute("student")["student/loss"].isnan()
