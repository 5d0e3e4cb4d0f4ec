"""Several models on the same batches: what is summed up batch by batch is what the whole data would give."""

import numpy as np
import pytest
import torch
from torch import nn

from lighten.delivery.measure.confusion import ConfusionTable, confusion_rows
from lighten.delivery.measure.evaluate import evaluate
from lighten.delivery.runtimes.runners import TorchRunner
from lighten.errors import UserError
from lighten.tasks import build_task, task_of

SIZES = (5, 3, 4)


def batches(x, y):
    return list(zip(x.split(list(SIZES)), y.split(list(SIZES)), strict=True))


def convolutions(outputs):
    torch.manual_seed(outputs)
    return {name: TorchRunner(nn.Conv2d(3, outputs, 3, padding=1).eval()) for name in ("teacher", "file", "network")}


def answers(runner, x):
    with torch.no_grad():
        return runner.module(x)


def test_masks_of_uneven_batches_are_summed_up_as_one() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, 6, 6, generator=draw), torch.randint(0, 4, (12, 6, 6), generator=draw)
    y[:, 0] = 255
    runners, task = convolutions(4), task_of("segmentation")
    heard = []
    found = evaluate(
        task, runners, batches(x, y), pairs=[("teacher", "file"), ("file", "network")], names=list("abcd"),
        listeners=[lambda labels, kept, models: heard.append((len(labels), len(kept), sorted(models)))],
    )  # fmt: skip
    assert (found.samples, found.outputs) == (12, 4)
    assert heard == [(size, size * 30, ["file", "network", "teacher"]) for size in SIZES]
    for name, runner in runners.items():
        said = answers(runner, x).argmax(1)[y != 255]
        assert found.metrics[name]["accuracy"] == pytest.approx((said == y[y != 255]).double().mean().item())
        assert found.sample_scores[name].shape == (12,)
    names, each = found.parts["file"]
    said, true = answers(runners["file"], x).argmax(1)[y != 255], y[y != 255]
    iou = [((said == c) & (true == c)).sum().item() / ((said == c) | (true == c)).sum().item() for c in range(4)]
    assert (names, each) == (list("abcd"), pytest.approx(iou))
    assert found.metrics["file"]["mean_iou"] == pytest.approx(np.mean(iou))
    ours, theirs = (answers(runners[name], x) for name in ("file", "network"))
    pair = found.differences["file", "network"]
    differ = (ours.argmax(1) != theirs.argmax(1))[y != 255]
    assert (pair.flips, pair.flips_of) == (int(differ.sum()), 12 * 30)
    assert pair.likeness["agreement"] == pytest.approx(1 - differ.double().mean().item())
    assert pair.error == pytest.approx(((ours - theirs).norm() / theirs.norm()).item(), rel=1e-5)


def test_pictures_have_no_flips_and_each_its_own_decibels() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, 6, 6, generator=draw)
    task = build_task("image", mean=[0.5] * 3, std=[0.2] * 3)
    found = evaluate(task, convolutions(3), batches(x, 0.9 * x), pairs=[("file", "network")])
    pair = found.differences["file", "network"]
    assert pair.flips is None
    assert set(pair.likeness) == {"psnr"}
    assert found.part_scores.kind == "image"
    assert found.parts["file"][1] == pytest.approx(found.sample_scores["file"].tolist())
    assert np.mean(found.sample_scores["file"]) == pytest.approx(found.metrics["file"]["psnr"], rel=1e-5)


def test_errors_of_a_regression_are_told_by_tenths_of_the_labels() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.bias, 0.5)
    x = torch.arange(12.0)[:, None]
    task = build_task("regression", mean=[100.0], std=[10.0])
    found = evaluate(task, {"file": TorchRunner(model.eval())}, batches(x, x))
    names, errors = found.parts["file"]
    assert names[0] == "100 to 110"
    assert len(names) == 10
    assert errors == pytest.approx([5.0] * 10)
    assert found.metrics["file"]["mae"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        ("segmentation", torch.full((12, 6, 6), 7), "answers 3 classes, but there is a label 7, expected 0 to 2"),
        ("segmentation", torch.full((12, 6, 6), 255), "no label of the data counts"),
        ("segmentation", torch.zeros(12, 6, 6), r"labels are torch.float32, expected \(batch, height, width\)"),
        ("segmentation", torch.zeros(12, 3, 3, dtype=torch.int64), "one label for each pixel"),
        ("image", torch.zeros(12, 1, 6, 6), "pictures of the same size; measure it on its own data"),
        ("regression", torch.zeros(12, 3), r"gives answers of shape \(5, 3, 6, 6\)"),
        ("image", torch.full((12, 3, 6, 6), torch.nan), "there is a label nan, expected finite numbers"),
    ],
)  # fmt: skip
def test_labels_and_answers_that_do_not_fit_are_one_line(task, labels, says) -> None:
    runners = {"file": convolutions(3)["file"]}
    with pytest.raises(UserError, match=says) as error:
        evaluate(task_of(task), runners, batches(torch.zeros(12, 3, 6, 6), labels))
    assert "\n" not in str(error.value)


def test_classes_without_names_are_numbered(tmp_path) -> None:
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 4)
    table = ConfusionTable()
    data = batches(torch.randn(12, 3, generator=draw), torch.randint(0, 4, (12,), generator=draw))
    found = evaluate(task_of("classification"), {"file": TorchRunner(model.eval())}, data, listeners=[table])
    assert found.parts["file"][0] == ["0", "1", "2", "3"]
    table.write(tmp_path, [], ["file"])
    _, rows = confusion_rows(tmp_path)
    assert sum(count for *_, count in rows) == 12


def test_boxes_of_uneven_batches_are_matched_as_one() -> None:
    from toy_boxes import Points, rectangles

    x, y = rectangles(12)
    task = build_task("detection", matches=3, nms=0.5)
    runners = {name: TorchRunner(Points(seed=seed).eval()) for name, seed in (("file", 0), ("network", 1))}
    for runner in runners.values():
        runner.module.head.bias.data[4:] = 1.0
    found = evaluate(
        task, runners, batches(x, y), pairs=[("file", "network"), ("file", "file")], names=["dark", "light"]
    )
    assert (found.samples, found.outputs) == (12, 2)
    for name, runner in runners.items():
        metrics = task.metrics(2)["map"].metric
        metrics.update(*task.rows(answers(runner, x), y))
        assert found.metrics[name] == pytest.approx({k: v.item() for k, v in metrics.compute().items()}, abs=1e-6)
        assert found.sample_scores[name].shape == (12,)
    names, each = found.parts["file"]
    assert names == ["dark", "light"]
    assert np.mean(each) == pytest.approx(found.metrics["file"]["map"], abs=1e-6)
    assert found.differences["file", "file"].flips == 0
    assert found.differences["file", "file"].likeness == {"agreement": 1.0}
    pair = found.differences["file", "network"]
    assert 0 < pair.flips <= pair.flips_of == 12
    y[3, 0] = torch.tensor([2, 0.5, 0.5, 0.2, 0.2])
    with pytest.raises(
        UserError, match=r"answers 2 classes, but there is a box of class 2 at .* expected class 0 to 1"
    ):
        evaluate(task, runners, batches(x, y))
