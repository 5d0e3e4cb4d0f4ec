"""Losses on hidden states against loops over samples, tokens and heads."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from lighten.distillation.features import attention_transfer, hidden_cosine, hint, relations
from lighten.errors import UserError

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def both(*shape: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    return student, teacher, torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)


def test_hint_and_cosine_of_tokens_equal_loops() -> None:
    student, teacher, s, t = both(3, 4, 6)
    squares, angles = [], []
    for b, n in np.argwhere(MASK):
        x, y = student[b, n], teacher[b, n]
        squares.append(np.mean((x - y) ** 2))
        angles.append(1 - x @ y / np.sqrt((x @ x) * (y @ y)))
    mask = torch.from_numpy(MASK)
    assert hint(s, t, mask=mask).item() == pytest.approx(np.mean(squares), rel=1e-12)
    assert hidden_cosine(s, t, mask=mask).item() == pytest.approx(np.mean(angles), rel=1e-12)


def test_hint_and_cosine_of_pixels_equal_loops() -> None:
    student, teacher, s, t = both(2, 3, 4, 5)
    angles = []
    for b, i, j in np.ndindex(2, 4, 5):
        x, y = student[b, :, i, j], teacher[b, :, i, j]
        angles.append(1 - x @ y / np.sqrt((x @ x) * (y @ y)))
    assert hint(s, t).item() == pytest.approx(np.mean((student - teacher) ** 2), rel=1e-12)
    assert hidden_cosine(s, t).item() == pytest.approx(np.mean(angles), rel=1e-12)


def test_attention_transfer_compares_where_energy_is_whatever_the_channels() -> None:
    student, teacher = draw(2, 3, 4, 5), draw(2, 7, 4, 5, seed=1)
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        p, q = ((x**2).sum(0).ravel() for x in (a, b))
        total += ((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum()
    found = attention_transfer(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found.item() == pytest.approx(total / 2, rel=1e-12)


def test_attention_transfer_of_tokens_leaves_padding_out() -> None:
    student, teacher, s, t = both(3, 4, 6)
    total = 0.0
    for a, b, m in zip(student, teacher, MASK, strict=True):
        p, q = ((x[m > 0] ** 2).sum(1) for x in (a, b))
        total += ((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum()
    assert attention_transfer(s, t, mask=torch.from_numpy(MASK)).item() == pytest.approx(total / 3, rel=1e-12)


def relations_reference(student, teacher, heads) -> float:
    """MiniLMv2, equations 3 to 6, over samples, heads and tokens that are not padding."""
    found = []
    for s, t, m in zip(student, teacher, MASK, strict=True):
        for head in range(heads):
            related = []
            for x in (s[m > 0], t[m > 0]):
                size = x.shape[1] // heads
                part = x[:, head * size : (head + 1) * size]
                related.append(softmax(part @ part.T / np.sqrt(size), axis=1))
            found.append(rel_entr(related[1], related[0]).sum(1))
    return np.concatenate(found).mean()


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_relations_equal_the_slow_reference_also_between_widths(heads) -> None:
    student, teacher = draw(3, 4, 6), draw(3, 4, 12, seed=1)
    found = relations(torch.from_numpy(student), torch.from_numpy(teacher), heads=heads, mask=torch.from_numpy(MASK))
    assert found.item() == pytest.approx(relations_reference(student, teacher, heads), rel=1e-9)


@pytest.mark.parametrize("loss", [hint, hidden_cosine, attention_transfer])
def test_gradients_reach_the_student_alone_and_vanish_where_both_agree(loss) -> None:
    _, _, s, t = both(3, 4, 6)
    teacher = t.clone().requires_grad_()
    loss(s, teacher).backward()
    assert s.grad.abs().sum() > 0
    assert teacher.grad is None
    same = t.clone().requires_grad_()
    value = loss(same, t)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert same.grad.abs().max() < 1e-7


def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch() -> None:
    _, _, s, t = both(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    for loss in (hint, hidden_cosine, lambda *a, **k: relations(*a, heads=2, **k)):
        parts = [loss(s[i : i + 1], t[i : i + 1], mask=mask[i : i + 1], count=torch.tensor(2.0)) for i in (0, 1)]
        torch.testing.assert_close(sum(parts) / 2, loss(s, t, mask=mask))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: hint(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 3\), teacher features \(2, 4\).*project"),
        (lambda: hidden_cosine(torch.zeros(2, 3), torch.zeros(3, 3)), "expected the same"),
        (
            lambda: attention_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)),
            r"student \(2, 3, 4, 4\), teacher \(2, 3, 8, 8\); choose layers of equal resolution",
        ),
        (lambda: relations(torch.zeros(2, 3, 6), torch.zeros(2, 3, 8), heads=3), "3 relation heads do not divide"),
        (lambda: relations(torch.zeros(2, 3, 6), torch.zeros(2, 4, 6), heads=3), "of the same texts"),
    ],
)
def test_what_does_not_fit_names_both_sides(call, told) -> None:
    with pytest.raises(UserError, match=told):
        call()
