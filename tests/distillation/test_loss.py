import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from lighten.distillation.loss import cross_entropy, loss_weights, soft_labels
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


def test_weights_come_from_soft_weight_or_by_name() -> None:
    assert loss_weights(None, 0.75, teacher=True) == {"soft_labels": 0.75, "cross_entropy": 0.25}
    assert loss_weights(None, 0.75, teacher=False) == {"cross_entropy": 1.0}
    assert loss_weights({"soft_labels": 5, "cross_entropy": 0}, 0.5, teacher=True) == {"soft_labels": 5.0}


@pytest.mark.parametrize(
    ("losses", "soft_weight", "teacher", "told"),
    [
        ({"soft_label": 1.0}, 0.9, True, "did you mean 'soft_labels'"),
        ({"soft_labels": -1.0}, 0.9, True, "losses.soft_labels=-1.0"),
        ({"cross_entropy": 0.0}, 0.9, True, "nothing to learn from"),
        ({"soft_labels": 1.0}, 0.9, False, "no teacher"),
        (None, 1.5, True, "soft_weight=1.5"),
    ],
)
def test_weights_without_sense_are_refused(losses, soft_weight, teacher, told) -> None:
    with pytest.raises(UserError, match=told):
        loss_weights(losses, soft_weight, teacher=teacher)
