"""Labels and weights that do not fit a task are told in one line."""

import pytest
import torch
from torch import nn

from lighten.distillation.batch_checks import (
    check_labels,
    check_logits,
    check_same_classes,
    check_single_sample,
    check_weights,
    describe_non_finite,
    first_non_finite,
    single_sample_as_user_error,
)
from lighten.errors import UserError

LOGITS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("labels", "task", "says"),
    [
        ([0, 1, 2], "classification", "of type list"),
        (torch.zeros(3), "classification", "torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "classification", "torch.bool"),
        (torch.zeros(3, 4), "classification", r"\(3, 4\)"),
        (torch.zeros(3), "multilabel", r"\(batch, outputs\)"),
        (torch.zeros(3, dtype=torch.int64), "masked_lm", "of tokens"),
    ],
)
def test_labels_of_another_kind(labels, task, says):
    with pytest.raises(UserError, match=says):
        check_labels(labels, task)


@pytest.mark.parametrize(
    ("logits", "labels", "task", "says"),
    [
        (LOGITS, torch.tensor([0, 1, 4]), "classification", "run from 0 to 4"),
        (LOGITS, torch.tensor([0, 1]), "classification", "one label for each row"),
        (LOGITS, torch.zeros(3, 3), "multilabel", "one label for each output"),
        (LOGITS, torch.full((3, 4), 2.0), "multilabel", "0 to 1"),
        (LOGITS, torch.zeros(3), "regression", "one label for each output"),
        (LOGITS[None], torch.zeros(3, dtype=torch.int64), "classification", "logits of shape"),
    ],
)
def test_labels_and_logits_that_do_not_fit(logits, labels, task, says):
    with pytest.raises(UserError, match=says):
        check_logits(logits, labels, task)


def test_what_fits_passes():
    check_logits(LOGITS, torch.tensor([0, 3, -100]), "classification")
    check_logits(LOGITS, torch.ones(3, 4), "multilabel")
    check_logits(LOGITS[:, :1], torch.zeros(3), "regression")
    check_logits(LOGITS, torch.tensor([0, 1, 4]), "classification", look=False)
    check_weights(torch.tensor([0.0, 1.0]), 2)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([-1.0, 1]), torch.tensor([torch.nan, 1]), [1.0, 1.0]])
def test_weights_that_are_none(weights):
    with pytest.raises(UserError, match="weights of samples"):
        check_weights(weights, 2)


def test_classes_that_are_not_those_of_the_data_or_of_the_teacher():
    with pytest.raises(UserError, match="student gives 4 classes, the data have 5"):
        check_logits(LOGITS, torch.tensor([0, 1, 2]), "classification", num_classes=5)
    with pytest.raises(UserError, match="teacher gives 2 classes, the student 4"):
        check_same_classes(LOGITS, LOGITS[:, :2])


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
