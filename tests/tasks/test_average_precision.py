"""mAP against pycocotools, of all pictures and of pictures drawn again and again."""

import contextlib
import io
import time

import numpy as np
import pytest
import torch

from lighten.tasks.average_precision import LIMITS, AveragePrecision, ByClass
from lighten.tasks.boxes import edges


def scene(pictures, classes, most=6, detections=20, seed=0):
    """Labels, and detections near them, elsewhere and of other classes; no two odds are the same."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    size = 0.05 + 0.4 * rand(pictures, most, 2)
    kinds = torch.randint(-1, classes, (pictures, most, 1), generator=g).float()
    labels = torch.cat([kinds, size / 2 + rand(pictures, most, 2) * (1 - size), size], -1)
    labels[kinds[..., 0] < 0, 1:] = 0
    of = torch.randint(0, most, (pictures, detections), generator=g)
    rows = labels.gather(1, of[..., None].expand(-1, -1, 5)).clone()
    rows[..., 1:] += 0.03 * torch.randn(pictures, detections, 4, generator=g) * rand(pictures, detections, 1)
    other = rand(pictures, detections) < 0.25
    rows[other, 0] = torch.randint(0, classes, (int(other.sum()),), generator=g).float()
    rows[..., 3:] = rows[..., 3:].clamp_min(0.01)
    odds = torch.randperm(pictures * detections, generator=g).view(pictures, detections) / (pictures * detections)
    rows = torch.cat([rows, odds[..., None]], -1)
    rows = rows.gather(1, odds.argsort(1, descending=True)[..., None].expand(-1, -1, 6))
    rows[rows[..., 0] < 0] = torch.tensor([-1.0, 0, 0, 0, 0, 0])
    return rows, labels


def coco_of(rows, labels, classes):
    """Mean over all, at 0.5, at 0.75, and by class, as pycocotools has them; every picture one of its own."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def boxes(each):
        corners = 1000 * edges(each[1:5].double())
        return [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]

    truth = COCO()
    images = [{"id": i + 1} for i in range(len(labels))]
    annotations = [
        {"image_id": i + 1, "category_id": int(r[0]) + 1, "bbox": boxes(r), "area": 1.0, "iscrowd": 0}
        for i, picture in enumerate(labels)
        for r in picture
        if r[0] >= 0
    ]
    for i, annotation in enumerate(annotations):
        annotation["id"] = i + 1
    truth.dataset = {
        "images": images, "annotations": annotations, "categories": [{"id": c + 1} for c in range(classes)], "info": {},
    }  # fmt: skip
    answers = [
        {"image_id": i + 1, "category_id": int(r[0]) + 1, "bbox": boxes(r), "score": float(r[5])}
        for i, picture in enumerate(rows)
        for r in picture
        if r[0] >= 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(answers), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]
    return run.stats[:3], [x[x > -1].mean() if (x > -1).any() else np.nan for x in precision.transpose(2, 0, 1)]


def measured(rows, labels, classes):
    metric = AveragePrecision(classes)
    for part in zip(rows.split(7), labels.split(7), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize(("pictures", "classes", "seed"), [(30, 3, 0), (50, 5, 1), (3, 8, 2)])
def test_figures_are_those_of_pycocotools(pictures, classes, seed):
    pytest.importorskip("pycocotools")
    rows, labels = scene(pictures, classes, seed=seed)
    labels[1] = torch.tensor([-1.0, 0, 0, 0, 0])
    metric = measured(rows, labels, classes)
    stats, each = coco_of(rows, labels, classes)
    found = metric.compute()
    assert 0.05 < float(found["map"]) < float(found["map_50"]) < 1
    assert [float(found[name]) for name in ("map", "map_50", "map_75")] == pytest.approx(stats.tolist(), abs=1e-9)
    parts = ByClass(classes, [])
    parts.update(rows, labels)
    names, values = parts.compute()
    assert names == [str(c) for c in range(classes)]
    assert values == [None if np.isnan(v) else pytest.approx(v, abs=1e-9) for v in each]


def test_drawn_pictures_are_pictures_repeated():
    pytest.importorskip("pycocotools")
    rows, labels = scene(25, 3)
    draws = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), 4)
    found = measured(rows, labels, 3).weighted(torch.from_numpy(draws).double())
    for i, draw in enumerate(draws):
        again = np.repeat(np.arange(25), draw)
        stats, _ = coco_of(rows[again], labels[again], 3)
        assert [float(found[n][i]) for n in ("map", "map_50", "map_75")] == pytest.approx(stats.tolist(), abs=1e-9)


def test_two_thousand_draws_take_seconds():
    rows, labels = scene(300, 4, detections=40)
    metric = measured(rows, labels, 4)
    weights = torch.from_numpy(np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), 2000)).double()
    begun = time.perf_counter()
    values = metric.weighted(weights)["map"]
    assert time.perf_counter() - begun < 30
    assert 0 < values.std() < 0.05


def test_pictures_without_boxes_and_nothing_found():
    rows, labels = torch.full((2, 3, 6), -1.0), torch.full((2, 4, 5), -1.0)
    metric = measured(rows, labels, 2)
    assert float(metric.compute()["map"]) == 0
    assert metric.weighted(torch.ones(3, 2).double())["map"].isnan().all()
    labels[0, 0] = torch.tensor([1, 0.5, 0.5, 0.2, 0.2])
    assert float(measured(rows, labels, 2).compute()["map"]) == 0
    rows[1, 0] = torch.tensor([1, 0.5, 0.5, 0.2, 0.2, 0.9])
    assert float(measured(rows, labels, 2).compute()["map"]) == 0
    rows[0, 0] = torch.tensor([1, 0.5, 0.5, 0.2, 0.2, 0.8])
    assert float(measured(rows, labels, 2).compute()["map"]) == pytest.approx(0.5)
    assert len(LIMITS) == 10
