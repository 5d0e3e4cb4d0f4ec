import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import pearsonr

from lighten.distillation.loss import dist, dkd, soft_labels
from lighten.errors import UserError


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=shape)


def both(*shape: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    return student, teacher, torch.from_numpy(student), torch.from_numpy(teacher)


def dkd_reference(student, teacher, labels, temperature, alpha, beta) -> float:
    """Zhao et al., equation 7, sample by sample from the probabilities."""
    total = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        target = rel_entr([p[label], 1 - p[label]], [q[label], 1 - q[label]]).sum()
        rest = np.arange(len(p)) != label
        others = rel_entr(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()).sum()
        total += alpha * target + beta * others
    return temperature**2 * total / len(student)


def dist_reference(student, teacher, temperature, beta, gamma) -> float:
    s, t = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    between = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(s, t, strict=True)])
    within = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(s.T, t.T, strict=True)])
    return temperature**2 * (beta * between + gamma * within)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 8.0), (4.0, 1.0, 2.0), (2.0, 0.0, 1.0)])
def test_dkd_equals_the_slow_reference(temperature, alpha, beta) -> None:
    student, teacher, s, t = both(6, 5)
    labels = np.array([0, 4, 2, 2, 1, 3])
    loss = dkd(s, t, torch.from_numpy(labels), temperature, alpha=alpha, beta=beta)
    assert loss.item() == pytest.approx(dkd_reference(student, teacher, labels, temperature, alpha, beta), rel=1e-9)


def test_dkd_with_the_teachers_own_doubt_as_beta_is_soft_labels() -> None:
    """Zhao et al., equation 5: KL = TCKD + (1 - p_y) NCKD."""
    _, _, s, t = both(1, 5)
    doubt = 1 - float((t / 3).softmax(1)[0, 2])
    torch.testing.assert_close(dkd(s, t, torch.tensor([2]), 3.0, beta=doubt), soft_labels(s, t, 3.0))


def test_dkd_stays_finite_where_the_teacher_has_no_doubt() -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = dkd(sure, torch.tensor([[300.0, 0.0, 1.0]]), torch.tensor([0]), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(1.0, 1.0, 1.0), (4.0, 2.0, 0.5)])
def test_dist_equals_the_slow_reference(temperature, beta, gamma) -> None:
    student, teacher, s, t = both(6, 5)
    loss = dist(s, t, temperature, beta=beta, gamma=gamma)
    assert loss.item() == pytest.approx(dist_reference(student, teacher, temperature, beta, gamma), rel=1e-6)


def test_dist_is_zero_for_equal_logits_and_has_a_gradient_where_a_row_does_not_vary() -> None:
    _, _, _, t = both(6, 5)
    assert dist(t, t).item() == pytest.approx(0, abs=1e-7)
    flat = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    dist(flat, t).backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature) -> None:
    _, _, s, t = both(6, 5)
    with pytest.raises(UserError, match="temperature"):
        dist(s, t, temperature)
    with pytest.raises(UserError, match="temperature"):
        dkd(s, t, torch.zeros(6, dtype=torch.long), temperature)
