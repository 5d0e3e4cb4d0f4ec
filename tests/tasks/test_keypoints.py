"""Keypoints: heatmaps and their points, losses, metrics against loops, and what is shown."""

import json
import math

import pytest
import torch
from torchmetrics import MeanMetric

from lighten.errors import UserError
from lighten.tasks import build_task, task_of
from lighten.tasks.keypoints import points_of
from lighten.tasks.scorer import likeness_of, scorer_of

CPU = torch.device("cpu")
TASK = task_of("keypoints")
G = torch.Generator().manual_seed(0)
LABELS = torch.cat([0.1 + 0.8 * torch.rand(5, 4, 2, generator=G), torch.ones(5, 4, 1)], -1)
LABELS[1, 2] = 0


def scores(answers, labels=LABELS, task=TASK):
    scorer = scorer_of(task, labels.shape[1], CPU)
    scorer.update(*task.rows(answers, labels))
    return {name: float(value) for name, value in scorer.compute().items()}


def test_a_task_is_made_again_from_its_settings():
    task = build_task("keypoints", spread=0.1)
    assert task_of(json.loads(json.dumps(task.settings()))) == task
    with pytest.raises(UserError, match="spread=0, expected a share"):
        build_task("keypoints", spread=0)


@pytest.mark.parametrize("size", [(16, 16), (24, 48), (64, 32)])
def test_the_points_of_gaussians_are_their_middles(size):
    maps = TASK.heatmaps(LABELS, *size)
    assert maps.shape == (5, 4, *size)
    far = (points_of(maps)[..., :2] - LABELS[..., :2]).abs()[LABELS[..., 2] > 0] * torch.tensor(size[::-1])
    assert far.max() < 0.1  # pixels
    assert scores(maps) == {"pck": 1.0, "distance": pytest.approx(0.0, abs=0.005)}
    assert float(TASK.loss(maps, LABELS)) == 0
    nothing = float(TASK.loss(torch.zeros_like(maps), LABELS))
    assert nothing == pytest.approx(1, abs=0.1)  # the borders cut some Gaussians


def test_the_loss_is_that_of_a_loop():
    answers = torch.randn(5, 4, 12, 20, generator=G).requires_grad_()
    total, there = 0.0, 0
    for maps, rows in zip(answers.detach().double(), LABELS.double(), strict=True):
        for heat, (x, y, seen) in zip(maps, rows.tolist(), strict=True):
            there += int(seen)
            for i in range(12):
                for j in range(20):
                    down, across = ((i + 0.5) - 12 * y) / 1.0, ((j + 0.5) - 20 * x) / 1.0
                    total += seen * (float(heat[i, j]) - math.exp(-(down**2 + across**2) / 2)) ** 2 / math.pi
    loss = TASK.loss(answers, LABELS)
    assert loss.item() == pytest.approx(total / there, rel=1e-5)
    loss.backward()
    assert (answers.grad[1, 2] == 0).all()
    assert TASK.loss(answers, torch.zeros_like(LABELS)).item() == 0


def test_metrics_are_those_of_a_loop():
    moved = LABELS.clone()
    moved[..., :2] += 0.12 * torch.randn(5, 4, 2, generator=G)
    maps = TASK.heatmaps(moved, 48, 48)
    points = points_of(maps)
    far = [
        math.dist(points[b, k, :2].tolist(), LABELS[b, k, :2].tolist())
        for b in range(5)
        for k in range(4)
        if LABELS[b, k, 2]
    ]
    near = [d <= 0.1 for d in far]
    assert 0 < sum(near) < len(far) == 19
    expected = {"pck": sum(near) / 19, "distance": sum(far) / 19}
    assert scores(maps) == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    parts = TASK.parts(4, ["a", "b", "c", "d"])
    parts.update(*TASK.rows(maps, LABELS))
    names, values = parts.compute()
    assert names == ["a", "b", "c", "d"]
    assert sum(v * n for v, n in zip(values, (5, 5, 4, 5), strict=True)) == pytest.approx(sum(near))
    assert float((-TASK.sample_scores(maps, LABELS) * torch.tensor([4, 3, 4, 4, 4])).sum()) == pytest.approx(sum(far))


def test_a_teacher_of_another_size_is_learned_from():
    teacher = TASK.heatmaps(LABELS, 32, 32)
    answers = torch.zeros(5, 4, 16, 16, requires_grad=True)
    assert TASK.comparable(answers, teacher)
    learns = torch.optim.Adam([answers], lr=0.05)
    for _ in range(60):
        learns.zero_grad()
        TASK.soft_loss(answers, teacher, 1.0).backward()
        learns.step()
    assert scores(answers.detach())["pck"] == 1
    likeness = likeness_of(TASK, 4, CPU)
    likeness.update(TASK.rows(answers.detach(), LABELS)[0], TASK.rows(teacher, LABELS)[0])
    assert float(likeness.compute()["agreement"]) == 1
    assert TASK.soft_loss(teacher, teacher, 1.0).item() == 0
    assert isinstance(TASK.likeness(4)["agreement"].metric, MeanMetric)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1.2, 0.5, 1], r"there is a point \(1.2, 0.5, 1\), expected x and y from 0 to 1"),
        ([0.2, float("nan"), 1], "nan"),
        ([0.2, 0.5, 2], r"\(0.2, 0.5, 2\)"),
    ],
)
def test_labels_that_are_no_points_are_told_in_a_line(row, says):
    labels = LABELS.clone()
    labels[2, 1] = torch.tensor(row)
    with pytest.raises(UserError, match=says):
        TASK.check_answers(torch.zeros(5, 4, 8, 8), labels)
    labels[2, 1] = torch.tensor([7.0, 7, 0])  # not there
    TASK.check_answers(torch.zeros(5, 4, 8, 8), labels, outputs=4)


def test_labels_of_another_kind():
    with pytest.raises(UserError, match=r"\(5, 4, 2\), expected \(batch, points, 3\)"):
        TASK.check_labels(LABELS[..., :2])
    with pytest.raises(UserError, match="one label for each heatmap"):
        TASK.check_answers(torch.zeros(5, 3, 8, 8), LABELS)


def test_what_is_shown():
    maps = TASK.heatmaps(LABELS, 32, 32)
    maps[0, 3] *= 0.1
    names = ["left", "right", "top", "hem"]
    first = TASK.readable(maps, names)[0]
    assert [mark["label"] for mark in first] == names[:3]
    assert first[0]["point"] == pytest.approx(LABELS[0, 0, :2].tolist(), abs=0.01)
    assert 0.8 < first[0]["odds"] <= 1
    assert json.loads(json.dumps(first)) == first
    assert [mark["label"] for mark in TASK.marks(LABELS[1], names)] == ["left", "right", "hem"]
    assert TASK.marks(LABELS[1], [])[0] == {"point": LABELS[1, 0, :2].tolist(), "label": "0", "odds": None}
