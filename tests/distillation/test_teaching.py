"""Teaching: the losses of a batch, who is asked for them, and how they are logged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.distillation.teacher import Teacher
from lighten.distillation.teaching import Teaching
from lighten.distillation.terms import CrossRank, WeightedLosses
from lighten.utils.batch import BatchFormat


class Asked(nn.Linear):
    """A teacher that counts how often it is asked."""

    times = 0

    def forward(self, x):
        self.times += 1
        return super().forward(x)


def taught(weights, **given):
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 3), Asked(4, 3)
    teaching = Teaching(
        WeightedLosses(weights, 2.0), Teacher(teacher), student=student, projections=nn.ModuleDict(), **given
    )
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    parts = BatchFormat().labelled((inputs, labels))
    answers = student(inputs)
    losses = teaching.losses(
        parts, answers, labels, progress=0.5, ranks=CrossRank(), first=True, look=True,
        own=answers.square().mean() if "own" in weights else None,
    )  # fmt: skip
    return teaching, losses, answers, teacher, inputs, labels


def test_losses_are_those_of_their_formulas():
    _, losses, answers, teacher, inputs, labels = taught({"soft_labels": 0.7, "cross_entropy": 0.3})
    with torch.no_grad():
        theirs = nn.Linear.forward(teacher, inputs)
    soft = 4 * F.kl_div((answers / 2).log_softmax(1), (theirs / 2).log_softmax(1), log_target=True, reduction="sum") / 8
    assert losses["soft_labels"][0] == 0.7
    torch.testing.assert_close(losses["soft_labels"][1], soft)
    torch.testing.assert_close(losses["cross_entropy"][1], F.cross_entropy(answers, labels))


@pytest.mark.parametrize(("weights", "times"), [({"cross_entropy": 1.0}, 0), ({"soft_labels": 1.0}, 1)])
def test_a_teacher_is_asked_where_a_loss_wants_it(weights, times):
    assert taught(weights)[3].times == times


def test_a_network_brings_a_loss_of_its_own():
    _, losses, answers, *_ = taught({"own": 1.0, "soft_labels": 0.5})
    torch.testing.assert_close(losses["own"][1], answers.square().mean())


def test_shares_are_of_the_whole_and_what_was_last_is_let_go():
    teaching, losses, answers, *_ = taught({"soft_labels": 0.7, "cross_entropy": 0.3})
    total = sum(weight * value for weight, value in losses.values())
    logged = teaching.logged(losses, total)
    assert sum(float(v) for k, v in logged.items() if "share" in k) == pytest.approx(1.0)
    assert torch.equal(teaching.last["student"], answers)
    teaching.close()
    assert teaching.last == {}
