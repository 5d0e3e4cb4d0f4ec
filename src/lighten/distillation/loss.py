"""What a student is taught with: plain functions of logits, and how they are weighted."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.errors import UserError, did_you_mean

LOSSES = ("soft_labels", "cross_entropy")
"""The losses that ``DistillationModule(losses=...)`` accepts."""


def soft_labels(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Return the soft-label loss: how far the student's softened distribution is from the teacher's.

    .. math:: T^2 \cdot \frac1B \sum_b
        \mathrm{KL}\bigl(\mathrm{softmax}(t_b / T) \,\|\, \mathrm{softmax}(s_b / T)\bigr)

    The factor T squared keeps the gradient's size independent of the temperature. Computed in float32
    (float64 where the student's logits are), also under autocast.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2.

    Args:
        student_logits: (batch, classes), with gradient.
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: T > 0, dimensionless.

    Returns:
        A scalar in nats, zero where both agree.

    Raises:
        UserError: if the shapes differ (nothing is broadcast) or the temperature is not above zero.

    Example:
        >>> soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), temperature=4.0)
        tensor(0.)
    """
    check_temperature(temperature)
    _check_pair(student_logits, teacher_logits)
    student = F.log_softmax(_upcast(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_upcast(teacher_logits.detach()).to(student.dtype) / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Return the cross-entropy with the true labels, mean over the batch.

    .. math:: -\frac1B \sum_b \sum_c q_{bc} \log \mathrm{softmax}(s_b)_c,
        \quad q = (1 - \varepsilon)\, \mathrm{onehot} + \varepsilon / C

    Computed in float32 (float64 where the logits are), also under autocast.

    Source for the smoothing: Szegedy et al.: Rethinking the Inception Architecture, 2016, section 7.

    Args:
        student_logits: (batch, classes).
        labels: (batch,), integers in [0, classes).
        label_smoothing: epsilon in [0, 1).

    Returns:
        A scalar in nats.

    Raises:
        UserError: if the shapes do not fit, or the labels are not integers.
    """
    if student_logits.ndim != 2 or labels.shape != student_logits.shape[:1]:
        raise UserError(
            f"logits of shape {_shape(student_logits)} and labels of shape {_shape(labels)}, expected "
            "(batch, classes) and (batch,); look at what the model returns and the data loader yields"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels are {labels.dtype}, expected class indices; convert them with labels.long()")
    return F.cross_entropy(_upcast(student_logits), labels.long(), label_smoothing=label_smoothing)


def loss_weights(losses: Mapping[str, float] | None, soft_weight: float, *, teacher: bool) -> dict[str, float]:
    """Return the weight of every loss that takes part.

    Args:
        losses: weights by name; by default ``soft_labels`` gets ``soft_weight``, ``cross_entropy`` the rest.
        soft_weight: in [0, 1].
        teacher: whether there is one; without, all weight lies on ``cross_entropy``.

    Raises:
        UserError: for an unknown name, a negative weight, no weight at all, or soft labels without a teacher.
    """
    if not 0.0 <= soft_weight <= 1.0:
        raise UserError(f"soft_weight={soft_weight}, expected a number in [0, 1]")
    if losses is None:
        losses = {"soft_labels": soft_weight, "cross_entropy": 1.0 - soft_weight} if teacher else {"cross_entropy": 1.0}
    for name, weight in losses.items():
        if name not in LOSSES:
            raise UserError(f"losses has {name!r}, which is no loss; {did_you_mean(name, LOSSES)}")
        if not 0.0 <= weight < float("inf"):
            raise UserError(f"losses.{name}={weight}, expected a finite number that is not below zero")
    weights = {name: float(weight) for name, weight in losses.items() if weight > 0}
    if not weights:
        raise UserError(f"losses={dict(losses)} leaves nothing to learn from; give one a weight above zero")
    if "soft_labels" in weights and not teacher:
        raise UserError("losses has 'soft_labels' and there is no teacher; give one, or use cross_entropy alone")
    return weights


def check_temperature(temperature: float) -> None:
    """Raise ``UserError`` unless the temperature is a finite number above zero."""
    if not 0.0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature}, expected a finite number above zero; 2 to 8 is usual")


def _check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student logits have shape {_shape(student_logits)}, teacher logits {_shape(teacher_logits)}, "
            "expected (batch, classes) twice; both must see the same batch and know the same classes"
        )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
