"""Losses on hidden features: plain functions, each with its formula and source.

Features are (batch, channels, height, width) of convolutions, (batch, length, width) of encoders or (batch, width); a
mask (batch, length) leaves padding out. All compute in float32 and let no gradient into the teacher.
"""

import torch.nn.functional as F
from torch import Tensor

from lighten.errors import UserError
from lighten.tasks.losses import masked_mean, upcast


def hint(
    student_features: Tensor, teacher_features: Tensor, *, mask: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    r"""Return the mean squared distance of features; where widths differ, project the student's first.

    .. math:: \frac{1}{N D} \sum_{n,d} (s_{nd} - t_{nd})^2

    with N positions (samples and tokens or pixels) of D values. FitNets halve the sum over D; the mean keeps one weight
    good for all widths.

    Source: Romero et al.: FitNets, ICLR 2015, equation 3.

    Args:
        student_features: see above; with gradient.
        teacher_features: the same shape.
        mask: (batch, length), zero at padding.
        count: positions to divide by instead of those that ``mask`` leaves; see ``soft_labels``.

    Raises:
        UserError: if the shapes differ.
    """
    student, teacher = _pair(student_features, teacher_features)
    return masked_mean((student - teacher).square(), mask, count)


def hidden_cosine(
    student_features: Tensor, teacher_features: Tensor, *, mask: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    r"""Return how far the directions of features are apart, in [0, 2].

    .. math:: \frac1N \sum_n \Bigl(1 - \frac{s_n \cdot t_n}{\|s_n\| \|t_n\|}\Bigr)

    Source: Sanh et al.: DistilBERT, 2019, section 3, its cosine embedding loss of the last hidden states.

    Args:
        student_features: see above; with gradient.
        teacher_features: the same shape.
        mask: (batch, length), zero at padding.
        count: as in ``hint``.

    Raises:
        UserError: if the shapes differ.
    """
    student, teacher = _pair(student_features, teacher_features)
    dim = 1 if student.ndim == 4 else -1
    return masked_mean(1 - F.cosine_similarity(student, teacher, dim=dim), mask, count)


def attention_transfer(student_features: Tensor, teacher_features: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return the squared distance of where both look: of their normalised maps of energy over positions.

    .. math:: \frac1B \sum_b \Bigl\|\frac{q(s_b)}{\|q(s_b)\|} - \frac{q(t_b)}{\|q(t_b)\|}\Bigr\|^2,
        \quad q(a)_p = \sum_d a_{dp}^2

    Numbers of channels may differ, positions may not.

    Source: Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, equation 2 with p = 2; the square as in
    their code.

    Args:
        student_features: (batch, channels, height, width) or (batch, length, width).
        teacher_features: the same positions.
        mask: (batch, length), zero at padding.

    Raises:
        UserError: if the positions differ, or there is one alone.
    """
    student, teacher = upcast(student_features), upcast(teacher_features.detach())
    dim = 1 if student.ndim == 4 else -1
    maps = [x.to(student.dtype).square().sum(dim).flatten(1) for x in (student, teacher)]
    if maps[0].shape != maps[1].shape or student.ndim not in (3, 4):
        raise UserError(
            f"attention transfer compares positions: student {_shape(student_features)}, teacher "
            f"{_shape(teacher_features)}; choose layers of equal resolution"
        )
    if mask is not None:
        maps = [x * mask.to(x.dtype) for x in maps]
    a, b = (F.normalize(x, dim=1) for x in maps)
    return (a - b).square().sum(1).mean()


def relations(
    student_values: Tensor,
    teacher_values: Tensor,
    *,
    heads: int,
    mask: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    r"""Return how differently both relate the tokens of a text to each other.

    .. math:: \frac{1}{A N} \sum_{a,n} \mathrm{KL}(R^t_{an} \| R^s_{an}), \quad
        R_{a} = \mathrm{softmax}\bigl(X_a X_a^\top / \sqrt{D / A}\bigr)

    X are queries, keys or values of all heads side by side, split into A relation heads, so that widths and heads
    may differ. N counts the tokens that are not padding. Tokens of one text meet, samples of a batch do not.

    Source: Wang et al.: MiniLMv2, 2021, equations 3 to 6; with the values alone MiniLM, 2020, equation 6.

    Args:
        student_values: (batch, length, width).
        teacher_values: (batch, length, width of the teacher).
        heads: A; divides both widths.
        mask: (batch, length), zero at padding.
        count: as in ``hint``.

    Raises:
        UserError: if batch or length differ, or ``heads`` does not divide a width.
    """
    student, teacher = upcast(student_values), upcast(teacher_values.detach())
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise UserError(
            f"relations: student {_shape(student_values)}, teacher {_shape(teacher_values)}, expected "
            "(batch, length, width) of the same texts"
        )
    if heads < 1 or student.shape[2] % heads or teacher.shape[2] % heads:
        raise UserError(
            f"relations: {heads} relation heads do not divide the widths {student.shape[2]} and {teacher.shape[2]}; "
            "choose a divisor of both"
        )
    of_student = _relation(student, heads, mask)
    of_teacher = _relation(teacher.to(student.dtype), heads, mask)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).sum(-1)
    return masked_mean(divergence.transpose(1, 2), mask, count)


def _relation(x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return log-probabilities (batch, heads, length, length); padding is related to by nobody."""
    x = x.unflatten(2, (heads, -1)).transpose(1, 2)
    scores = x @ x.transpose(2, 3) / x.shape[-1] ** 0.5
    if mask is not None:  # far below all others, yet finite: exp(-1e4) is zero in float32, and its difference is too
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], -1e4)
    return F.log_softmax(scores, dim=-1)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.ndim < 2:
        raise UserError(
            f"student features have shape {_shape(student)}, teacher features {_shape(teacher)}, expected the same; "
            "choose layers that match, or project the student's"
        )
    student = upcast(student)
    return student, upcast(teacher.detach()).to(student.dtype)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
