import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, rel_entr, softmax

from lighten.distillation.loss import (
    binary_cross_entropy,
    cross_entropy,
    dist,
    dkd,
    mean_squared_error,
    soft_binary_labels,
    soft_labels,
)
from lighten.errors import UserError


def soft_labels_reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Hinton's loss, sample by sample."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += rel_entr(softmax(t / temperature), softmax(s / temperature)).sum()
    return temperature**2 * total / len(student)


def cross_entropy_reference(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        wanted = np.full(len(row), smoothing / len(row))
        wanted[label] += 1 - smoothing
        total -= (wanted * log_softmax(row)).sum()
    return total / len(logits)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=shape)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_labels_equal_the_slow_reference(temperature: float) -> None:
    student, teacher = draw(5, 7), draw(5, 7, seed=1)
    loss = soft_labels(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert loss.item() == pytest.approx(soft_labels_reference(student, teacher, temperature), rel=1e-12)


def test_soft_labels_gradient_does_not_shrink_with_the_temperature() -> None:
    """Hinton 2015, equation 4: for large T the gradient tends to (s - t) / (C * batch), both centred."""
    student = torch.from_numpy(draw(3, 5)).requires_grad_()
    teacher = torch.from_numpy(draw(3, 5, seed=1))
    soft_labels(student, teacher, 1e5).backward()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, (centred / 15).detach(), rtol=1e-3, atol=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    soft_labels(student, teacher * 2, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_losses_compute_in_float32_under_autocast() -> None:
    student, teacher = (torch.from_numpy(draw(64, 10, seed=s)).bfloat16() for s in (0, 1))
    labels = torch.arange(64) % 10
    with torch.autocast("cpu", torch.bfloat16):
        soft, hard = soft_labels(student, teacher, 4.0), cross_entropy(student, labels)
    assert soft.dtype == hard.dtype == torch.float32
    expected = soft_labels_reference(student.double().numpy(), teacher.double().numpy(), 4.0)
    assert soft.item() == pytest.approx(expected, rel=1e-5)
    expected = cross_entropy_reference(student.double().numpy(), labels.numpy(), 0.0)
    assert hard.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_slow_reference(smoothing: float) -> None:
    logits, labels = draw(6, 4), np.array([0, 3, 1, 1, 2, 0])
    loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), smoothing)
    assert loss.item() == pytest.approx(cross_entropy_reference(logits, labels, smoothing), rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 1), (1, 5), (4, 6), (5,), (4, 5, 1)])
def test_soft_labels_refuse_to_broadcast_and_name_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        soft_labels(torch.zeros(4, 5), torch.zeros(shape), 2.0)
    assert "(4, 5)" in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_soft_labels_refuse_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature={temperature}"):
        soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.long), torch.zeros(4, 5), torch.zeros(4)])
def test_cross_entropy_refuses_labels_that_do_not_fit(labels: torch.Tensor) -> None:
    with pytest.raises(UserError):
        cross_entropy(torch.zeros(4, 5), labels)


def both(*shape: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    return student, teacher, torch.from_numpy(student), torch.from_numpy(teacher)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_binary_labels_equal_the_slow_reference(temperature) -> None:
    student, teacher, s, t = both(4, 6)
    p, q = expit(teacher / temperature), expit(student / temperature)
    expected = temperature**2 * np.mean(rel_entr(p, q) + rel_entr(1 - p, 1 - q))
    assert soft_binary_labels(s, t, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_losses_of_other_tasks_equal_their_formulas() -> None:
    student, _, s, _ = both(4, 6)
    labels = (draw(4, 6, seed=2) > 0).astype(float)
    p = expit(student)
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert binary_cross_entropy(s, torch.from_numpy(labels)).item() == pytest.approx(expected, rel=1e-9)
    expected = np.mean((student - labels) ** 2)
    assert mean_squared_error(s, torch.from_numpy(labels)).item() == pytest.approx(expected, rel=1e-12)


def test_padding_and_ignored_labels_count_nowhere() -> None:
    student, teacher, s, t = both(3, 4, 5)
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    labels = np.where(mask, np.arange(12).reshape(3, 4) % 5, -100)
    rows = mask.astype(bool)
    soft = soft_labels(s, t, 2.0, mask=torch.from_numpy(mask))
    assert soft.item() == pytest.approx(soft_labels_reference(student[rows], teacher[rows], 2.0), rel=1e-9)
    hard = cross_entropy(s, torch.from_numpy(labels), 0.1)
    assert hard.item() == pytest.approx(cross_entropy_reference(student[rows], labels[rows], 0.1), rel=1e-9)
    spoilt = torch.where(torch.from_numpy(rows)[..., None], s, torch.nan)
    assert torch.equal(soft_labels(spoilt, t, 2.0, mask=torch.from_numpy(mask)), soft)
    assert cross_entropy(s, torch.full((3, 4), -100)).item() == 0


def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch() -> None:
    """Two ranks with three and one tokens: each divides by the mean of their counts."""
    _, _, s, t = both(2, 3, 5)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    labels = torch.where(mask.bool(), torch.tensor([[1, 2, 3], [4, 0, 0]]), -100)
    mean = torch.tensor(2.0)
    for whole, of_rank in (
        (soft_labels(s, t, 2.0, mask=mask), lambda i: soft_labels(s[i], t[i], 2.0, mask=mask[i], count=mean)),
        (cross_entropy(s, labels), lambda i: cross_entropy(s[i], labels[i], count=mean)),
    ):
        torch.testing.assert_close((of_rank(slice(0, 1)) + of_rank(slice(1, 2))) / 2, whole)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: dkd(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4).long(), 1.0), "one class was given"),
        (lambda: dkd(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3).long(), 1.0), r"labels of shape \(3,\)"),
        (lambda: dist(torch.zeros(1, 3), torch.zeros(1, 3)), "expected two of each"),
        (lambda: dist(torch.zeros(4, 3), torch.zeros(4, 3), 0.0), "temperature=0.0"),
        (lambda: soft_binary_labels(torch.zeros(4, 3), torch.zeros(4, 2), 1.0), r"\(4, 3\), teacher logits \(4, 2\)"),
        (lambda: binary_cross_entropy(torch.zeros(4, 3), torch.zeros(4)), "nothing is broadcast"),
        (lambda: mean_squared_error(torch.zeros(4, 1), torch.zeros(4)), "nothing is broadcast"),
        (
            lambda: soft_labels(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 1.0, mask=torch.ones(3, 2)),
            r"a mask of shape \(3, 2\) does not fit",
        ),
    ],
)
def test_what_does_not_fit_names_what_was_given(call, told) -> None:
    with pytest.raises(UserError, match=told):
        call()
