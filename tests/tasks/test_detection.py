"""Detection: labels that are checked, losses against loops, likeness, and what is shown."""

import json

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from lighten.errors import UserError
from lighten.tasks import build_task, task_of
from lighten.tasks.boxes import edges, generalised_overlap, overlap
from lighten.tasks.matching import costs
from lighten.tasks.scorer import likeness_of, scorer_of

CPU = torch.device("cpu")
NONE = [-1.0, 0, 0, 0, 0]
G = torch.Generator().manual_seed(0)


def answers_of(samples=3, places=8, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    size = 0.1 + 0.4 * torch.rand(samples, places, 2, generator=g)
    boxes = torch.cat([size / 2 + torch.rand(samples, places, 2, generator=g) * (1 - size), size], -1)
    return torch.cat([boxes, torch.randn(samples, places, classes, generator=g) - 1], -1)


LABELS = torch.tensor(
    [
        [[0, 0.3, 0.3, 0.2, 0.4], [2, 0.6, 0.5, 0.3, 0.3], NONE],
        [NONE, NONE, NONE],
        [[1, 0.5, 0.5, 0.9, 0.9], NONE, [1, 0.1, 0.1, 0.1, 0.1]],
    ]
)


def answering(labels, sure=6.0, classes=3):
    """Answers that say the labels, with certainty."""
    logits = torch.where(F.one_hot(labels[..., 0].clamp_min(0).long(), classes).bool(), sure, -sure)
    return torch.cat([labels[..., 1:], torch.where(labels[..., :1] < 0, -sure, logits)], -1)


def test_a_task_is_made_again_from_its_settings():
    task = build_task("detection", matches=9, nms=0.6)
    assert task_of(json.loads(json.dumps(task.settings()))) == task
    assert task.outputs_of(answers_of()) == 3
    assert task.misunderstands(task_of("detection")) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"matches": 0}, "matches=0, expected a whole number of places"),
        ({"matches": 4}, "matches=4 teaches several places the same box"),
        ({"nms": 1.5}, "nms=1.5, expected an overlap between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(UserError, match=says):
        build_task("detection", **settings)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([3, 0.5, 0.5, 0.2, 0.2], r"there is a box of class 3 at \(0.5, 0.5, 0.2, 0.2\), expected class 0 to 2"),
        ([0.5, 0.5, 0.5, 0.2, 0.2], "a box of class 0.5"),
        ([0, 0.95, 0.5, 0.2, 0.2], r"class 0 at \(0.95, 0.5, 0.2, 0.2\), expected .* inside of the picture"),
        ([0, 32, 40, 16, 8], r"class 0 at \(32, 40, 16, 8\), expected .* in shares"),
        ([0, 0.5, 0.5, 0.2, 0.0], r"\(0.5, 0.5, 0.2, 0\), expected .* with an area"),
        ([0, 0.5, float("nan"), 0.2, 0.2], r"\(0.5, nan, 0.2, 0.2\)"),
        ([float("nan"), 0.5, 0.5, 0.2, 0.2], "class nan"),
    ],
)
def test_labels_that_are_no_boxes_are_told_in_a_line(row, says):
    task, labels = task_of("detection"), LABELS.clone()
    labels[1, 1] = torch.tensor(row)
    with pytest.raises(UserError, match=says) as told:
        task.check_answers(answers_of(), labels)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS[0], r"\(3, 5\), expected \(batch, most, 5\)"),
        (LABELS[..., :4], r"\(3, 3, 4\), expected"),
        (LABELS.long(), "torch.int64"),
    ],
)
def test_labels_of_another_kind(labels, says):
    with pytest.raises(UserError, match=says):
        task_of("detection").check_labels(labels)


def test_what_fits_passes_and_what_does_not_is_told():
    task = task_of("detection")
    task.check_answers(answers_of(), task.check_labels(LABELS), outputs=3)
    with pytest.raises(UserError, match="student gives 3 classes, the data have 4"):
        task.check_answers(answers_of(), LABELS, outputs=4)
    with pytest.raises(UserError, match="answers of shape"):
        task.check_answers(answers_of()[0], LABELS)
    with pytest.raises(UserError, match="a picture for each"):
        task.check_answers(answers_of(2), LABELS)


def slow_loss(answers, labels):
    """Set prediction, a picture after the other, in the notation of its papers."""
    total, boxes = 0.0, 0
    for picture, rows in zip(answers.double(), labels.double(), strict=True):
        rows = rows[rows[:, 0] >= 0]
        odds = picture[:, 4:].sigmoid()
        target = torch.zeros_like(odds)
        if len(rows):
            places, own = linear_sum_assignment(costs(picture[None], rows[None])[0])
            for p, b in zip(places, own, strict=True):
                pair = edges(picture[p, :4]), edges(rows[b, 1:])
                target[p, int(rows[b, 0])] = overlap(*pair)
                total += 5 * (picture[p, :4] - rows[b, 1:]).abs().sum() + 2 * (1 - generalised_overlap(*pair))
        bce = -target * odds.log() - (1 - target) * (1 - odds).log()
        rest = torch.where(target > 0, target * target.log(), 0.0) + (1 - target) * (1 - target).log()
        total += ((target - odds) ** 2 * (bce + rest)).sum()
        boxes += len(rows)
    return total / max(1, boxes)


def test_the_loss_is_that_of_a_loop():
    answers = answers_of().requires_grad_()
    task = task_of("detection")
    loss = task.loss(answers, LABELS)
    assert loss.item() == pytest.approx(float(slow_loss(answers.detach(), LABELS)), rel=1e-5)
    loss.backward()
    assert answers.grad.isfinite().all()
    answers = answers.detach()
    assert float(task.loss(answers, LABELS, count=torch.tensor(8.0))) == pytest.approx(loss.item() / 2, rel=1e-5)
    each = -task.sample_scores(answers, LABELS)
    assert float((each * torch.tensor([2, 1, 2])).sum() / 4) == pytest.approx(loss.item(), rel=1e-5)
    some = task.loss(answers, LABELS, weights=torch.tensor([1.0, 0.0, 0.0]))
    assert float(some) == pytest.approx(float(each[0]) / 2, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"matches": 3, "nms": 0.5}])
def test_the_right_answer_costs_least_and_no_box_at_all_is_legal(settings):
    task = build_task("detection", **settings)
    right = answering(LABELS)
    assert float(task.loss(right, LABELS)) < (0.01 if not settings else 1.5) * float(task.loss(answers_of(), LABELS))
    nothing = torch.full((2, 3, 5), -1.0)
    answers = answers_of(2).requires_grad_()
    loss = task.loss(answers, nothing)
    loss.backward()
    assert loss.item() > 0
    assert (answers.grad[..., :4] == 0).all()


def test_training_finds_the_boxes_of_both_kinds():
    """Free answers, learned by gradient alone, come to say the labels."""
    for settings in ({}, {"matches": 3, "nms": 0.5}):
        task = build_task("detection", **settings)
        answers = answers_of(places=12).requires_grad_()
        learns = torch.optim.Adam([answers], lr=0.02)
        for _ in range(120):
            learns.zero_grad()
            task.loss(answers, LABELS).backward()
            learns.step()
        scorer = scorer_of(task, 3, CPU)
        scorer.update(*task.rows(answers.detach(), LABELS))
        assert float(scorer.compute()["map"]) > 0.9


@pytest.mark.parametrize(("ours", "theirs"), [({}, {}), ({}, {"places": 20}), ({"places": 30}, {"places": 5})])
@pytest.mark.parametrize("settings", [{}, {"matches": 3, "nms": 0.5}])
def test_a_teacher_with_other_places_is_learned_from(settings, ours, theirs):
    task = build_task("detection", **settings)
    teacher, answers = answers_of(seed=1, **theirs), answers_of(**ours).requires_grad_()
    teacher[:, 5:, 4:] -= 4  # no more boxes than the student has places
    first = likeness(task, answers.detach(), teacher)
    learns = torch.optim.Adam([answers], lr=0.05)
    losses = []
    for _ in range(100):
        learns.zero_grad()
        loss = task.soft_loss(answers, teacher, 1.0)
        loss.backward()
        learns.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert likeness(task, answers.detach(), teacher) > max(0.8, first)


def likeness(task, ours, theirs):
    scorer = likeness_of(task, 3, CPU)
    scorer.update(*(task.rows(x, LABELS)[0] for x in (ours, theirs)))
    return float(scorer.compute()["agreement"])


def test_a_teacher_that_says_the_same_costs_nothing_whatever_the_order_of_its_places():
    teacher = answers_of()
    teacher[..., 4:] = torch.where(teacher[..., 4:] > 0, 3.0, -20.0)
    shuffled = teacher[:, torch.randperm(8, generator=G)]
    task = task_of("detection")
    assert float(task.soft_loss(shuffled, teacher, 1.0)) < 1e-4
    assert float(task.soft_loss(answers_of(seed=5), teacher, 1.0)) > 1
    first = task.soft_loss(answers_of(seed=5), teacher, 1.0, weights=torch.tensor([1.0, 0, 0]))
    assert float(task.soft_loss(answers_of(1, seed=5), teacher[:1], 1.0)) > float(first) > 0


def test_of_the_places_of_a_teachers_box_each_says_how_well_it_fits():
    """As with labels; else the weaker of two places could be kept for the better."""
    task = build_task("detection", matches=3, nms=0.5)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.55, 0.5, 0.4, 0.4], [0.5, 0.6, 0.4, 0.4]])
    teacher = torch.tensor([[[0.5, 0.5, 0.4, 0.4, 2.0, -9.0]]])
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    learns = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        learns.zero_grad()
        task.soft_loss(torch.cat([boxes[None], logits], -1), teacher, 1.0).backward()
        learns.step()
    overlaps = torch.tensor([1.0, 0.35 / 0.45, 0.3 / 0.5])
    torch.testing.assert_close(
        logits[0, :, 0].detach().sigmoid(), overlaps * torch.tensor(2.0).sigmoid(), atol=0.05, rtol=0
    )


def test_likeness_is_f1_of_sure_boxes():
    task = task_of("detection")
    ours, theirs = answering(LABELS), answering(LABELS)
    assert likeness(task, ours, theirs) == 1
    assert task.same(*(task.rows(x, LABELS)[0] for x in (ours, theirs))).tolist() == [True, True, True]
    theirs[0, 0, 4] = -6  # one box less
    theirs[2, 0, :2] = 0.1  # and one elsewhere
    assert likeness(task, ours, theirs) == pytest.approx(2 * 2 / (4 + 3))
    for pair in ((ours, theirs), (theirs, ours)):
        assert task.same(*(task.rows(x, LABELS)[0] for x in pair)).tolist() == [False, True, False]
    theirs[0, 0, 4] = -1.0  # odds of 0.27, said by neither
    assert likeness(task, ours, theirs) == pytest.approx(2 * 2 / (4 + 3))
    assert likeness(task, *2 * [answering(torch.full_like(LABELS, -1))]) == 1


def test_rounding_of_a_sure_box_weighs_more_than_that_of_a_place_where_nothing_is():
    task, answers = task_of("detection"), answering(LABELS)
    moved, other = answers.clone(), answers.clone()
    moved[0, 0, 0] += 0.02  # a tenth of the box's width
    other[1, :, 4:] -= 2.0
    error = lambda x: float((task.to_compare(x) - task.to_compare(answers)).square().sum())  # noqa: E731
    assert error(moved) > 20 * error(other)
    assert torch.equal(task_of("classification").to_compare(answers), answers)


def test_what_is_shown():
    task = build_task("detection", matches=3, nms=0.5)
    answers = answering(LABELS)
    (first, second), nothing, (third, _) = task.readable(answers, ["cat", "dog", "hen"])
    assert nothing == []
    assert {first["label"], second["label"]} == {"cat", "hen"}
    assert third["label"] == "dog"
    assert third["odds"] == pytest.approx(0.9975, abs=1e-4)
    assert json.loads(json.dumps(first)) == first
    truth = task.marks(LABELS[0], ["cat", "dog", "hen"])
    assert [(mark["label"], mark["odds"]) for mark in truth] == [("cat", None), ("hen", None)]
    assert truth[0]["box"] == pytest.approx([0.2, 0.1, 0.4, 0.5])
    assert task.marks(LABELS[1], []) == []
    assert [mark["label"] for mark in task.marks(LABELS[2], [])] == ["1", "1"]


def test_labels_and_answers_of_one_class_are_told_apart():
    task = task_of("detection")
    labels = torch.tensor([[0, 0.5, 0.5, 0.2, 0.2], NONE])
    (mark,) = task.marks(labels, ["cat"])
    assert (mark["label"], mark["odds"]) == ("cat", None)
    (mark,) = task.marks(answering(labels[None], classes=1)[0], ["cat"])
    assert mark["odds"] > 0.9
