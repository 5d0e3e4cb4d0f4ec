"""Losses on logits: plain functions, each with its formula and source.

All compute in float32 (float64 where the student's values are), also under autocast, and let no gradient into the
teacher. Positions that a mask or a label of -100 leaves out count nowhere, in no sum and in no mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.errors import UserError

IGNORED = -100
"""The label of positions that have none, as everywhere in PyTorch."""


def soft_labels(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    mask: Tensor | None = None,
    count: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Return the soft-label loss: how far the student's softened distribution is from the teacher's.

    .. math:: T^2 \cdot \frac1N \sum_n
        \mathrm{KL}\bigl(\mathrm{softmax}(t_n / T) \,\|\, \mathrm{softmax}(s_n / T)\bigr)

    The factor T squared keeps the gradient's size independent of the temperature.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2.

    Args:
        student_logits: (batch, classes), or (batch, length, classes) for one distribution a token; with gradient.
        teacher_logits: the same shape.
        temperature: T > 0, dimensionless.
        mask: (batch,) or (batch, length), zero where a position is padding or otherwise left out.
        count: N; by default the positions that are not left out. Ranks that hold unequal numbers of positions give
            their mean, so that the mean of their losses is the loss of the whole batch.
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Returns:
        A scalar in nats, zero where both agree.

    Raises:
        UserError: if the shapes differ (nothing is broadcast) or the temperature is not above zero.

    Example:
        >>> soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), temperature=4.0)
        tensor(0.)
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits)
    student = F.log_softmax(upcast(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(as_student(teacher_logits, student) / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    return masked_mean(weighted(divergence, weights), mask, count) * temperature**2


def soft_binary_labels(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, weights: Tensor | None = None
) -> Tensor:
    r"""Return the soft-label loss where each class is a question of its own, as in multi-label tasks.

    .. math:: T^2 \cdot \frac{1}{BC} \sum_{b,c}
        \mathrm{KL}\bigl(\mathrm{Bern}(\sigma(t_{bc} / T)) \,\|\, \mathrm{Bern}(\sigma(s_{bc} / T))\bigr)

    Source: the two-class case of Hinton et al. 2015 for every class, as in Yang et al.: Multi-Label Knowledge
    Distillation, ICCV 2023, equation 3.

    Args:
        student_logits: (batch, classes).
        teacher_logits: the same shape.
        temperature: T > 0.
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Raises:
        UserError: as ``soft_labels``.
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits, dims=(2,))
    student = upcast(student_logits) / temperature
    teacher = as_student(teacher_logits, student) / temperature
    sure, unsure = torch.sigmoid(teacher), torch.sigmoid(-teacher)
    divergence = sure * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergence = divergence + unsure * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return weighted(divergence, weights).mean() * temperature**2


def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    count: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Return the cross-entropy with the true labels; of masked language models, with the masked tokens.

    .. math:: -\frac1N \sum_n \sum_c q_{nc} \log \mathrm{softmax}(s_n)_c,
        \quad q = (1 - \varepsilon)\, \mathrm{onehot} + \varepsilon / C

    Source for the smoothing: Szegedy et al.: Rethinking the Inception Architecture, 2016, section 7; for masked tokens
    Devlin et al.: BERT, 2019, section 3.1.

    Args:
        student_logits: (batch, classes) or (batch, length, classes).
        labels: (batch,) or (batch, length), integers in [0, classes); positions of -100 are left out.
        label_smoothing: epsilon in [0, 1).
        count: N, as in ``soft_labels``.
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Returns:
        A scalar in nats; zero where no position has a label.

    Raises:
        UserError: if the shapes do not fit, or the labels are not integers.
    """
    check_labels_fit(student_logits, labels)
    logits, answers = upcast(student_logits).flatten(0, -2), labels.flatten().long()
    values = F.cross_entropy(logits, answers, label_smoothing=label_smoothing, ignore_index=IGNORED, reduction="none")
    return masked_mean(weighted(values.view(labels.shape), weights), labels != IGNORED, count)


def binary_cross_entropy(student_logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    r"""Return the cross-entropy of yes-or-no questions, one a class, mean over batch and classes.

    .. math:: -\frac{1}{BC} \sum_{b,c} y_{bc} \log \sigma(s_{bc}) + (1 - y_{bc}) \log \sigma(-s_{bc})

    Args:
        student_logits: (batch, classes).
        labels: (batch, classes), in [0, 1].
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Raises:
        UserError: if the shapes differ.
    """
    _check_targets(student_logits, labels)
    logits = upcast(student_logits)
    values = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return weighted(values, weights).mean()


def quality_focal(student_logits: Tensor, odds: Tensor) -> Tensor:
    r"""Return the divergence of yes-or-no answers from odds, each weighted by how far they are apart; of their shape.

    .. math:: |y - \sigma(s)|^2 \cdot \mathrm{KL}\bigl(\mathrm{Bern}(y) \,\|\, \mathrm{Bern}(\sigma(s))\bigr)

    Source: Li et al.: Generalized Focal Loss, NeurIPS 2020, equation 2, less the entropy of y, so that it is zero where
    both agree. The weight lets no gradient through.

    Args:
        student_logits: any shape, with gradient.
        odds: y in [0, 1], of the same shape.
    """
    logits = upcast(student_logits)
    odds = odds.detach().to(logits.dtype)
    entropy = -(torch.xlogy(odds, odds) + torch.xlogy(1 - odds, 1 - odds))
    apart = F.binary_cross_entropy_with_logits(logits, odds, reduction="none") - entropy
    return (odds - logits.detach().sigmoid()).square() * apart


def mean_squared_error(student_values: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
    r"""Return the mean squared difference, to the labels of a regression task or to its teacher's answers.

    .. math:: \frac{1}{BK} \sum_{b,k} (s_{bk} - y_{bk})^2

    Source for teachers: Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, section 2.2.

    Args:
        student_values: (batch, targets).
        targets: the same shape.
        weights: (batch,), what the loss of each sample is multiplied with; N stays.

    Raises:
        UserError: if the shapes differ.
    """
    _check_targets(student_values, targets)
    values = upcast(student_values)
    return weighted((values - targets.detach().to(values.dtype)).square(), weights).mean()


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return ``values`` (batch, …) times the weights (batch,) of their samples, where there are any."""
    return values if weights is None else values * weights.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def masked_mean(values: Tensor, mask: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """Return the mean of ``values`` where ``mask`` is not zero; zero where it is so everywhere.

    Args:
        values: any shape.
        mask: the same shape, or the shape of its first dimensions; ``None`` takes all.
        count: what to divide by instead of the number of values taken.

    Raises:
        UserError: if the mask's shape is no beginning of the values'.
    """
    if mask is None:
        return values.mean() if count is None else values.sum() / count
    if mask.shape != values.shape[: mask.ndim]:
        raise UserError(
            f"a mask of shape {shape_of(mask)} does not fit values of shape {shape_of(values)}; give one a row"
        )
    taken = mask.bool()
    chosen = torch.where(taken.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)), values, 0.0)
    each = values.numel() // max(1, mask.numel())
    return chosen.sum() / ((taken.sum() if count is None else count) * each).clamp_min(1)


def check_temperature(temperature: float) -> None:
    """Raise ``UserError`` unless the temperature is a finite number above zero."""
    if not 0.0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature}, expected a finite number above zero; 2 to 8 is usual")


def upcast(values: Tensor) -> Tensor:
    """Return floating-point values in float32, or in float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def as_student(teacher: Tensor, student: Tensor) -> Tensor:
    """Return a teacher's values without gradient, in the student's dtype."""
    return upcast(teacher.detach()).to(student.dtype)


def check_pair(student_logits: Tensor, teacher_logits: Tensor, dims: tuple[int, ...] = (2, 3)) -> None:
    """Raise ``UserError`` unless two models' logits have one shape, of so many dimensions."""
    if student_logits.ndim not in dims or student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student logits have shape {shape_of(student_logits)}, teacher logits {shape_of(teacher_logits)}, "
            "expected (batch, classes) twice; both must see the same batch and know the same classes"
        )


def check_labels_fit(student_logits: Tensor, labels: Tensor) -> None:
    """Raise ``UserError`` unless there is a class index for each row of logits."""
    if student_logits.ndim not in (2, 3) or labels.shape != student_logits.shape[:-1]:
        raise UserError(
            f"logits of shape {shape_of(student_logits)} and labels of shape {shape_of(labels)}, expected "
            "(batch, classes) and (batch,); look at what the model returns and the data loader yields"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels are {labels.dtype}, expected class indices; convert them with labels.long()")


def _check_targets(values: Tensor, targets: Tensor) -> None:
    if values.shape != targets.shape:
        raise UserError(
            f"outputs of shape {shape_of(values)} and targets of shape {shape_of(targets)}, expected the same; "
            "nothing is broadcast"
        )


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape as text."""
    return str(tuple(tensor.shape))
