"""Labels and answers that do not fit a task are told in one line; tasks are made again from their settings."""

import json
from dataclasses import dataclass

import pytest
import torch

from lighten.errors import UserError
from lighten.tasks import build_task, register_task, task_of
from lighten.tasks.task import Meaning, Task

LOGITS = torch.zeros(3, 4)
PIXELS = torch.zeros(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("labels", "task", "says"),
    [
        ([0, 1, 2], "classification", "of type list"),
        (torch.zeros(3), "classification", "torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "classification", "torch.bool"),
        (torch.zeros(3, 4), "classification", r"\(3, 4\)"),
        (torch.zeros(3), "multilabel", r"\(batch, outputs\)"),
        (torch.zeros(3, dtype=torch.int64), "masked_lm", "of tokens"),
        (torch.zeros(3, 4), "token_classification", "of class indices"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.int64), "segmentation", r"\(batch, height, width\) of class indices"),
        (torch.zeros(3, 4, 4), "segmentation", "torch.float32"),
        (torch.zeros(3, 4, 4), "image", r"\(batch, channels, height, width\)"),
        (torch.zeros(3, 4, 4), "regression", r"\(batch, outputs\)"),
    ],
)
def test_labels_of_another_kind(labels, task, says):
    with pytest.raises(UserError, match=says):
        task_of(task).check_labels(labels)


@pytest.mark.parametrize(
    ("logits", "labels", "task", "says"),
    [
        (LOGITS, torch.tensor([0, 1, 4]), "classification", "run from 0 to 4"),
        (LOGITS, torch.tensor([0, 1]), "classification", "one label for each row"),
        (LOGITS, torch.zeros(3, 3), "multilabel", "one label for each output"),
        (LOGITS, torch.full((3, 4), 2.0), "multilabel", "0 to 1"),
        (LOGITS, torch.zeros(3), "regression", "one label for each output"),
        (PIXELS, torch.zeros(2, 4, 5, dtype=torch.int64), "segmentation", "one label for each pixel"),
        (PIXELS, torch.full((2, 5, 5), 3), "segmentation", "run from 3 to 3, expected 0 to 2"),
        (PIXELS, torch.zeros(2, 3, 5, 4), "image", "pictures of the same size"),
        (PIXELS[0], torch.zeros(2, 3, 5, 5), "image", "answers of shape"),
        (LOGITS[None], torch.zeros(3, dtype=torch.int64), "classification", "logits of shape"),
    ],
)
def test_labels_and_logits_that_do_not_fit(logits, labels, task, says):
    with pytest.raises(UserError, match=says):
        task_of(task).check_answers(logits, labels)


def test_what_fits_passes():
    task_of("classification").check_answers(LOGITS, torch.tensor([0, 3, -100]))
    task_of("multilabel").check_answers(LOGITS, torch.ones(3, 4))
    task_of("regression").check_answers(LOGITS[:, :1], torch.zeros(3))
    task_of("classification").check_answers(LOGITS, torch.tensor([0, 1, 4]), look=False)
    task_of("segmentation").check_answers(PIXELS, torch.tensor([0, 2, 255, -100, 1]).expand(2, 5, 5))


def test_classes_that_are_not_those_of_the_data():
    with pytest.raises(UserError, match="student gives 4 classes, the data have 5"):
        task_of("classification").check_answers(LOGITS, torch.tensor([0, 1, 2]), outputs=5)
    with pytest.raises(UserError, match="student gives 3 channels, the data have 1"):
        task_of("image").check_answers(PIXELS, torch.zeros(2, 1, 5, 5), outputs=1)


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression", "segmentation", "image", "masked_lm"])
def test_a_task_is_made_again_from_its_settings(name):
    task = build_task(name)
    assert task_of(json.loads(json.dumps(task.settings()))) == task == task_of(name) == task_of(task)
    assert task.metric in task.metrics(3) or task.ranks
    assert set(task.alike) <= set(task.likeness(3))


def test_settings_of_tasks():
    task = build_task("regression", mean=[1.0, 2.0], std=[3.0, 4.0], unit="m")
    assert task_of(json.loads(json.dumps(task.settings()))) == task
    assert task.restored(torch.tensor([[1.0, -1.0]])).tolist() == [[4.0, -2.0]]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("regresion", {}, "did you mean 'regression'"),
        ("regression", {"means": [1.0]}, "no option 'means'"),
        ("regression", {"mean": [1.0]}, "1 values of mean, 0 of std"),
        ("regression", {"mean": [1.0], "std": [0.0]}, r"std=0.0, expected a number above zero"),
        ("image", {"data_range": 0.0}, "data_range=0.0"),
        ("segmentation", {"ignored": "none"}, "ignored='none'"),
    ],
)
def test_settings_that_make_no_sense(name, settings, says):
    with pytest.raises(UserError, match=says):
        build_task(name, **settings)


def test_what_is_kept_is_honest_where_less_is_better_and_in_decibels():
    assert task_of("classification").retention({"accuracy": 0.9}, {"accuracy": 0.81}) == pytest.approx(0.9)
    assert task_of("image").retention({"psnr": 30.0}, {"psnr": 29.9}) == pytest.approx(0.97724, abs=1e-4)
    assert task_of("regression").retention({"r2": -0.1}, {"r2": 0.5}) == 0.0

    @dataclass(frozen=True, kw_only=True)
    class Distance(Task):
        reported = {"distance": Meaning("Distance", lower_is_better=True)}  # noqa: RUF012

    assert Distance().retention({"distance": 1.98}, {"distance": 2.0}) == pytest.approx(0.99)


def test_a_task_of_ones_own_that_lacks_a_part_is_named():
    with pytest.raises(UserError, match="lacks reported, loss, soft_loss, metrics"):
        register_task("nothing")(type("Nothing", (Task,), {}))
    with pytest.raises(UserError, match="expected a subclass"):
        register_task("nothing")(int)


def test_a_teacher_of_another_task_or_unit_is_not_understood():
    price = build_task("regression", mean=[4000.0], std=[3000.0])
    assert price.misunderstands(build_task("regression", mean=[4000.0], std=[3000.0], unit="USD")) is None
    assert "standardised by mean [1.0] and deviation [3000.0]" in (
        price.misunderstands(build_task("regression", mean=[1.0], std=[3000.0])) or ""
    )
    assert price.misunderstands(task_of("classification")) == "answers task classification, the data are of regression"
    assert task_of("segmentation").misunderstands(build_task("segmentation", ignored=0)) is None


TASKS = ("classification", "image", "masked_lm", "multilabel", "regression", "segmentation", "token_classification")
LESS_IS_BETTER = {"kl", "loss", "mae", "rmse", "relative_error"}


@pytest.mark.parametrize("name", TASKS)
def test_less_is_better_of_errors_and_losses_alone(name):
    task = task_of(name)
    told = {**task.reported, **task.alike}
    assert {metric for metric, meaning in told.items() if meaning.lower_is_better} == LESS_IS_BETTER & set(told)
    assert task.lower_is_better == (task.metric in LESS_IS_BETTER)
