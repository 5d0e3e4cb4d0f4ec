"""Losses of the distillation literature on logits: plain functions, each with its formula and source.

The losses of a task, on its labels and on soft labels, are in :mod:`lighten.tasks.losses` and stand here too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.errors import UserError
from lighten.tasks.losses import (
    IGNORED,
    as_student,
    check_labels_fit,
    check_pair,
    check_temperature,
    masked_mean,
    shape_of,
    upcast,
    weighted,
)
from lighten.tasks.losses import binary_cross_entropy as binary_cross_entropy
from lighten.tasks.losses import cross_entropy as cross_entropy
from lighten.tasks.losses import mean_squared_error as mean_squared_error
from lighten.tasks.losses import soft_binary_labels as soft_binary_labels
from lighten.tasks.losses import soft_labels as soft_labels


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Return decoupled distillation: the labelled class against the rest, and the rest among themselves.

    .. math:: T^2 \cdot \frac1B \sum_b
        \bigl(\alpha\, \mathrm{KL}(b^t \| b^s) + \beta\, \mathrm{KL}(\hat p^t \| \hat p^s)\bigr),
        \quad b = (p_y, 1 - p_y), \quad \hat p_c = p_c / (1 - p_y) \text{ for } c \neq y

    with p = softmax(logits / T). Soft labels weigh the second term by the teacher's own doubt, 1 - p_y; here it has a
    weight of its own. The published beta grows with the teacher's certainty: 1 to 8.

    Source: Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, equation 7.

    Args:
        student_logits: (batch, classes), two classes at least.
        teacher_logits: the same shape.
        labels: (batch,), integers; those of -100 are left out.
        temperature: T > 0.
        alpha: weight of the labelled class against the rest.
        beta: weight of the rest among themselves.
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Raises:
        UserError: as ``soft_labels``, if the labels do not fit, or there is one class alone.
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits, dims=(2,))
    check_labels_fit(student_logits, labels)
    if student_logits.shape[1] < 2:
        raise UserError("dkd compares classes with each other, one class was given; expected two at least")
    keep = labels != IGNORED
    student = F.log_softmax(upcast(student_logits)[keep] / temperature, dim=-1)
    teacher = F.log_softmax(as_student(teacher_logits, student)[keep] / temperature, dim=-1)
    labelled = F.one_hot(labels[keep].long(), student.shape[1]).bool()
    of_label, rest_s, rest_t = [], _without(student, labelled), _without(teacher, labelled)
    for x, rest in ((student, rest_s), (teacher, rest_t)):
        of_label.append(torch.stack([x[labelled], rest.logsumexp(-1)], dim=-1))
    target = F.kl_div(of_label[0], of_label[1], reduction="none", log_target=True).sum(-1)
    others = F.kl_div(
        F.log_softmax(rest_s, dim=-1), F.log_softmax(rest_t, dim=-1), reduction="none", log_target=True
    ).sum(-1)
    values = weighted(alpha * target + beta * others, None if weights is None else weights[keep])
    return masked_mean(values, torch.ones_like(target)) * temperature**2  # zero of no samples


def dist(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    r"""Return DIST: correlations with the teacher, of a sample's classes and of a class's samples.

    .. math:: T^2 \Bigl(\beta \bigl(1 - \tfrac1B \sum_b \rho(s_{b\cdot}, t_{b\cdot})\bigr)
        + \gamma \bigl(1 - \tfrac1C \sum_c \rho(s_{\cdot c}, t_{\cdot c})\bigr)\Bigr)

    with s, t = softmax(logits / T) and rho Pearson's correlation. The second term couples the samples of a batch: ranks
    must gather their logits first, as ``DistillationModule`` does.

    Source: Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, equations 5 to 8.

    Args:
        student_logits: (batch, classes), two of each at least.
        teacher_logits: the same shape.
        temperature: T > 0; the authors take 1, and 4 on CIFAR.
        beta: weight of the relations between classes.
        gamma: weight of the relations within classes.

    Raises:
        UserError: as ``soft_labels``, or if there are fewer than two samples or classes to correlate.
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits, dims=(2,))
    if min(student_logits.shape) < 2:
        raise UserError(
            f"dist correlates over samples and classes, logits are {shape_of(student_logits)}; "
            "expected two of each at least"
        )
    student = F.softmax(upcast(student_logits) / temperature, dim=-1)
    teacher = F.softmax(as_student(teacher_logits, student) / temperature, dim=-1)
    between = 1 - _correlation(student, teacher).mean()
    within = 1 - _correlation(student.T, teacher.T).mean()
    return temperature**2 * (beta * between + gamma * within)


def _without(log_probabilities: Tensor, labelled: Tensor) -> Tensor:
    """Return the log-probabilities of the classes that are not labelled, (batch, classes - 1)."""
    return log_probabilities[~labelled].view(len(log_probabilities), log_probabilities.shape[1] - 1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of ``a`` with that of ``b``; zero for a row that does not vary."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-12)
