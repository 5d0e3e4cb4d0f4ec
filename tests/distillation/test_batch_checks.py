"""Weights, single samples and answers that do not fit are told in one line."""

import pytest
import torch
from torch import nn

from lighten.distillation.batch_checks import (
    check_same_outputs,
    check_single_sample,
    check_weights,
    describe_non_finite,
    first_non_finite,
    single_sample_as_user_error,
)
from lighten.errors import UserError
from lighten.tasks import task_of

LOGITS = torch.zeros(3, 4)


def test_weights_that_fit_pass():
    check_weights(torch.tensor([0.0, 1.0]), 2)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([-1.0, 1]), torch.tensor([torch.nan, 1]), [1.0, 1.0]])
def test_weights_that_are_none(weights):
    with pytest.raises(UserError, match="weights of samples"):
        check_weights(weights, 2)


def test_outputs_that_are_not_those_of_the_teacher():
    with pytest.raises(UserError, match="teacher gives 2 classes, the student 4"):
        check_same_outputs(task_of("classification"), LOGITS, LOGITS[:, :2])
    with pytest.raises(UserError, match="teacher gives 1 channels, the student 3"):
        check_same_outputs(task_of("image"), torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(UserError, match=r"teacher's logits have shape \(2, 3, 2, 2\), the student's \(2, 3, 4, 4\)"):
        check_same_outputs(task_of("segmentation"), torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2), (0, 2)])
def test_the_first_sample_that_is_not_finite(shape):
    values = torch.zeros(shape)
    assert first_non_finite(values) is None
    if len(values):
        values[1:] = torch.inf
        assert first_non_finite(values) == 1


def test_whose_logits_are_not_finite():
    bad = torch.tensor([[0.0], [torch.nan]])
    assert describe_non_finite({"teacher": LOGITS, "student": LOGITS}) is None
    assert "the student's logits are not finite for sample 1" in (
        describe_non_finite({"teacher": LOGITS, "student": bad}) or ""
    )


def test_one_sample_alone_is_refused_by_batch_norm_in_training():
    model = nn.Sequential(nn.BatchNorm1d(2))
    check_single_sample(model, 2)
    check_single_sample(model.eval(), 1)
    with pytest.raises(UserError, match="batch of one sample"):
        check_single_sample(model.train(), 1)
    with pytest.raises(UserError, match="batch of one sample"), single_sample_as_user_error(model):
        model(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="another"), single_sample_as_user_error(model):
        raise ValueError("another")


def test_answers_of_another_task_than_the_one_that_is_named():
    tokens = torch.zeros(2, 5, 7)  # classes would be looked for along the text
    with pytest.raises(UserError, match=r"logits of shape \(2, 5, 7\), expected \(batch, classes\) of task='classifi"):
        check_same_outputs(task_of("classification"), tokens, tokens)
    check_same_outputs(task_of("token_classification"), tokens, tokens)
