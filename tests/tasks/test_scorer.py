import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    jaccard_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    recall_score,
)

from lighten.tasks import build_task, task_of
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
        "accuracy": pytest.approx(accuracy_score(labels, picked), rel=1e-6),
        "macro_f1": pytest.approx(f1_score(labels, picked, average="macro"), rel=1e-6),
        "worst_class": pytest.approx(recall_score(labels, picked, average=None, zero_division=1).min()),
        "ece": pytest.approx(calibration_error(likely, labels.numpy()), rel=1e-5),
        "loss": pytest.approx(log_loss(labels, likely, labels=range(4)), rel=1e-5),
    }


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


@pytest.mark.parametrize("targets", [1, 3])
def test_scores_of_a_regression_equal_scipy(targets) -> None:
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(50, targets, generator=draw), torch.randn(50, targets, generator=draw)
    found = scored(targets, values, labels[:, 0] if targets == 1 else labels, "regression")
    each = [pearsonr(values[:, i], labels[:, i])[0] for i in range(targets)]
    assert found["pearson"] == pytest.approx(np.mean(each), abs=1e-5)
    assert found["worst_class"] == pytest.approx(min(each), abs=1e-5)
    assert found["loss"] == pytest.approx((values - labels).square().mean().item(), rel=1e-5)


def test_masked_language_models_are_scored_where_there_is_a_label() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, 7, generator=draw), torch.randint(0, 7, (50, 6), generator=draw)
    labels[torch.rand(50, 6, generator=draw) < 0.7] = -100
    there = labels != -100
    found = scored(7, logits, labels, "masked_lm")
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == labels)[there].double().mean().item())
    expected = torch.nn.functional.cross_entropy(logits[there].double(), labels[there]).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_likeness_is_agreement_and_divergence_from_the_teacher() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 50, 4, generator=draw)
    p, q = (x.double().softmax(1) for x in (teacher, student))
    assert alike(4, student, teacher) == {
        "agreement": pytest.approx((student.argmax(1) == teacher.argmax(1)).double().mean().item(), rel=1e-6),
        "kl": pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5),
    }


def test_a_loss_that_is_nan_is_not_hidden() -> None:
    scores = scorer_of(task_of("classification"), 2, CPU)
    scores.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]))
    assert scores.compute()["loss"].isnan()


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_scored_in_their_own_unit(targets) -> None:
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(2, 50, targets, generator=draw)
    values = labels + 0.3 * values
    mean, std = [4000.0, -2.0][:targets], [3000.0, 0.5][:targets]
    found = scored(targets, values, labels, build_task("regression", mean=mean, std=std, unit="USD"))
    x, y = (v.double().numpy() * std + mean for v in (values, labels))
    assert found["r2"] == pytest.approx(r2_score(y, x), abs=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(y, x), rel=1e-5)
    each = [mean_squared_error(y[:, i], x[:, i]) ** 0.5 for i in range(targets)]
    assert found["rmse"] == pytest.approx(np.mean(each), rel=1e-5)
    other = labels + 0.1
    error = np.mean([np.sqrt(0.01 * 50 / ((y[:, i] - y[:, i].mean()) ** 2).sum()) * std[i] for i in range(targets)])
    assert alike(targets, other, labels, "regression")["relative_error"] == pytest.approx(error, rel=1e-3)


def test_masks_are_scored_by_intersection_over_union_and_ignored_pixels_count_nowhere() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, 6, 5, generator=draw)
    labels = torch.randint(0, 3, (50, 6, 5), generator=draw)  # class 3 is answered and never there
    labels[torch.rand(50, 6, 5, generator=draw) < 0.2] = 255
    labels[0, 0, 0] = -100
    found = scored(4, logits, labels, "segmentation")
    there = ((labels != 255) & (labels != -100)).numpy()
    said, true = logits.argmax(1).numpy()[there], labels.numpy()[there]
    each = jaccard_score(true, said, average=None, labels=range(4))
    assert found["mean_iou"] == pytest.approx(each.mean(), rel=1e-6)
    assert found["worst_class"] == pytest.approx(each[:3].min(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((said == true).mean(), rel=1e-6)
    rows = logits.movedim(1, -1)[torch.from_numpy(there)].double()
    assert found["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(rows, torch.from_numpy(true)).item(), rel=1e-5
    )
    loss = task_of("segmentation").loss(logits.double(), labels)
    assert loss.item() == pytest.approx(found["loss"], rel=1e-5)


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


def test_tokens_are_scored_where_there_is_a_label() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, 3, generator=draw), torch.randint(0, 3, (50, 6), generator=draw)
    labels[:, 4:] = -100
    there = labels != -100
    found = scored(3, logits, labels, "token_classification")
    assert found["macro_f1"] == pytest.approx(f1_score(labels[there], logits.argmax(-1)[there], average="macro"))
