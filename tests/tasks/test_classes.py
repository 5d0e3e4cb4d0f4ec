import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    jaccard_score,
    log_loss,
    recall_score,
)
from task_scoring import alike, scored

from lighten.tasks import task_of


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


def test_tokens_are_scored_where_there_is_a_label() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, 3, generator=draw), torch.randint(0, 3, (50, 6), generator=draw)
    labels[:, 4:] = -100
    there = labels != -100
    found = scored(3, logits, labels, "token_classification")
    assert found["macro_f1"] == pytest.approx(f1_score(labels[there], logits.argmax(-1)[there], average="macro"))
