"""Labels and weights that do not fit a task are told in one line."""

import pytest
import torch

from lighten.distillation.batch_checks import check_labels, check_range, check_weights
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
        check_range(logits, labels, task)


def test_what_fits_passes():
    check_range(LOGITS, torch.tensor([0, 3, -100]), "classification")
    check_range(LOGITS, torch.ones(3, 4), "multilabel")
    check_range(LOGITS[:, :1], torch.zeros(3), "regression")
    check_range(LOGITS, torch.tensor([0, 1, 4]), "classification", look=False)
    check_weights(torch.tensor([0.0, 1.0]), 2)


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([-1.0, 1]), torch.tensor([torch.nan, 1]), [1.0, 1.0]])
def test_weights_that_are_none(weights):
    with pytest.raises(UserError, match="weights of samples"):
        check_weights(weights, 2)
