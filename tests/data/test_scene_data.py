import json

import numpy as np
import pytest
import torch

from lighten.data import build_data
from lighten.data.fashion_mnist import CLASSES, read_embedded
from lighten.data.images import ImageSet
from lighten.data.scene_data import MEAN, PARTS, STD, TEST, TRAIN, add_noise, painted, sources_of
from lighten.data.scene_layout import draw_layout, paint, paint_items
from lighten.data.scene_marks import boxes_of, points_of
from lighten.errors import UserError
from lighten.tasks import build_task
from lighten.training.order import draw

SIZES = {"scenes": 60, "validation": 20, "test": 30, "size": 32, "items": 4}


def module(answer="mask", **changes):
    data = build_data("scenes", **{"answer": answer, "batch_size": 20, "seed": 3} | SIZES | changes)
    data.setup("fit")
    return data


def in_bytes(inputs):
    return (255 * (inputs * STD[0] + MEAN[0])).round().to(torch.uint8)


def epoch_of(loader, epoch):
    """Return inputs and answers by key."""
    loader.order.set_epoch(epoch)
    return {
        key: (x, y)
        for inputs, answers, keys in loader
        for key, x, y in zip(keys.tolist(), inputs, answers, strict=True)
    }


def test_parts_share_no_source_image():
    images = read_embedded()
    rows = [{row.tobytes() for row in sources_of(part)[0].numpy()} for part in PARTS]
    assert [len(sources_of(part)[1]) for part in PARTS] == [10_500, 1_500, 2_000]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    assert rows[0] | rows[1] == {row.tobytes() for row in images.train.numpy()}
    for part, pixels, labels in ((part, *sources_of(part)) for part in PARTS):
        layout = draw_layout(part, 5, size=32, items=4, sources=len(labels))
        assert all(map(torch.equal, painted(part, 5, 32, 4), paint(layout, pixels, labels, 32)))


def test_masks_are_where_the_garments_are():
    data = module()
    assert data.task == build_task("segmentation")
    assert data.class_names == ("background", *CLASSES)
    assert (data.num_classes, data.input_shape, data.train_samples) == (11, (1, 32, 32), 60)
    labels = sources_of(TEST)[1]
    layout = draw_layout(TEST, 30, size=32, items=4, sources=2000)
    (inputs, masks), *_ = data.test_dataloader()
    assert (inputs.dtype, masks.dtype, masks.shape) == (torch.float32, torch.int64, (20, 32, 32))
    for scene, mask in enumerate(masks):
        count = layout.counts[scene]
        assert set(mask.unique().tolist()) - {0} == {1 + int(labels[n]) for n in layout.sources[scene, :count]}
        boxed = torch.zeros(32, 32, dtype=torch.bool)
        for top, left, side in layout.boxes[scene, :count]:
            boxed[top : top + side, left : left + side] = True
        assert not mask[~boxed].any()
    assert torch.equal(in_bytes(inputs), data.test_set.pictures[:20])


def test_counts_are_standardised_by_those_of_the_training_part():
    data = module("count")
    counts = draw_layout(TRAIN, 60, size=32, items=4, sources=9).counts
    assert data.task.mean == pytest.approx((counts.mean(),))
    assert data.task.std == pytest.approx((counts.std(),))
    assert (data.task.name, data.task.unit, data.class_names) == ("regression", "garments", ("garments",))
    answers = data.train_set.__getitems__([(0, i) for i in range(60)])[1]
    assert (answers.dtype, answers.shape) == (torch.float32, (60, 1))
    assert np.allclose(answers[:, 0] * data.task.std[0] + data.task.mean[0], counts, atol=1e-5)
    tests = data.test_set.__getitems__([(0, i) for i in range(30)])[1][:, 0]
    expected = draw_layout(TEST, 30, size=32, items=4, sources=9).counts
    assert np.allclose(tests * data.task.std[0] + data.task.mean[0], expected, atol=1e-5)


def test_boxes_and_points_are_those_of_the_layout():
    sources, labels = sources_of(TEST)
    data = module("boxes", matches=3, nms=0.6)
    assert data.task == build_task("detection", matches=3, nms=0.6)
    assert (data.num_classes, data.class_names) == (10, CLASSES)
    layout = draw_layout(TEST, 30, size=32, items=4, sources=2000)
    _, items, areas = paint_items(layout, sources, 32)
    inputs, answers = data.test_set.__getitems__([(0, i) for i in range(30)])
    assert torch.equal(answers, boxes_of(layout, items, areas, labels))
    assert torch.equal(in_bytes(inputs), module().test_set.pictures)
    assert set(answers[..., 0].unique().tolist()) <= {*range(-1, 10)}
    data = module("keypoints", items=None)
    assert (data.task.name, data.num_classes, data.items) == ("keypoints", 4, 1)
    layout = draw_layout(TEST, 30, size=32, items=1, sources=2000)
    answers = data.test_set.__getitems__([(0, i) for i in range(30)])[1]
    assert torch.equal(answers, points_of(paint_items(layout, sources, 32)[1]))


@pytest.mark.parametrize("answer", ["boxes", "keypoints"])
def test_boxes_and_points_of_a_flipped_scene_are_those_found_in_it(answer):
    count = 1 if answer == "keypoints" else 4
    flipped, plain = (module(answer, items=count, augment=augment).train_set for augment in (True, False))
    places = [(0, i) for i in range(60)]
    inputs, answers = flipped.__getitems__(places)
    as_they_are, before = plain.__getitems__(places)
    pixels, labels = sources_of(TRAIN)
    layout = draw_layout(TRAIN, 60, size=32, items=count, sources=len(labels))
    _, items, areas = paint_items(layout, pixels, 32)
    mirror = items.flip(2)
    found = points_of(mirror) if answer == "keypoints" else boxes_of(layout, mirror, areas, labels)
    turned = [not torch.equal(a, b) for a, b in zip(inputs, as_they_are, strict=True)]
    assert 15 < sum(turned) < 45
    for n, turn in enumerate(turned):
        assert torch.allclose(answers[n], found[n] if turn else before[n], atol=1e-6)


def test_a_picture_is_asked_for_without_the_noise_of_its_input():
    data = module("picture", noise=0.1, size=64, augment=False)
    assert data.task == build_task("image", mean=MEAN, std=STD, data_range=1.0)
    assert (data.num_classes, data.class_names) == (1, ("grey",))
    inputs, answers = data.train_set.__getitems__([(0, i) for i in range(60)])
    assert torch.equal(in_bytes(answers), data.train_set.pictures)
    bright = (data.train_set.pictures > 100) & (data.train_set.pictures < 155)
    noise = (inputs - answers)[bright] * STD[0]
    assert abs(noise.std() - 0.1) < 0.005
    assert abs(noise.mean()) < 0.005
    assert torch.allclose(255 * (inputs * STD[0] + MEAN[0]), in_bytes(inputs).float(), atol=1e-3)


def test_noise_is_that_of_a_loop_over_pixels():
    pictures = torch.randint(0, 256, (2, 1, 3, 4), dtype=torch.uint8)
    noisy = add_noise(pictures, 0.3, 7, np.array([0, 5]), np.array([11, 12]))
    spread = (sum((b - 127.5) ** 2 for b in range(256)) / 256 * 8) ** 0.5
    for scene, (view, sample) in enumerate([(0, 11), (5, 12)]):
        for place in range(12):
            bits = int(draw(7, np.array([view]), np.array([sample]), stream=2 + place)[0])
            normal = (sum(bits.to_bytes(8, "little")) - 8 * 127.5) / spread
            expected = int(pictures[scene].flatten()[place]) + round(0.3 * 255 * normal)
            assert noisy[scene].flatten()[place] == min(max(expected, 0), 255)


@pytest.mark.parametrize("answer", ["mask", "count", "picture"])
def test_a_flip_is_that_of_the_scene_and_of_its_answer(answer):
    flipped, plain = module(answer).train_set, module(answer, augment=False).train_set
    places = [(0, i) for i in range(60)]
    _, answers = flipped.__getitems__(places)
    _, as_they_are = plain.__getitems__(places)
    turned = torch.from_numpy(draw(3, np.zeros(60), np.arange(60), stream=1) >> np.uint64(63)).bool()
    assert 15 < turned.sum() < 45
    for n, turn in enumerate(turned):
        scene = plain.pictures[n]
        expected = scene.flip(2) if turn else scene
        if answer != "picture":
            assert torch.equal(in_bytes(flipped.__getitems__([(0, n)])[0][0]), expected)
        if answer == "count":
            assert torch.equal(answers[n], as_they_are[n])
        else:
            assert torch.equal(answers[n], as_they_are[n].flip(-1) if turn else as_they_are[n])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("answer", ["mask", "picture"])
def test_views_have_their_own_keys_and_come_again(answer, workers):
    data = module(answer, views=2, workers=workers)
    data.keyed = True
    loader = data.train_dataloader()
    epochs = [epoch_of(loader, epoch) for epoch in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(60)), list(range(60, 120))] * 2
    for first, again in (epochs[::2], epochs[1::2]):
        assert all(all(map(torch.equal, first[key], again[key])) for key in first)
    same = sum(torch.equal(epochs[0][key][0], epochs[1][60 + key][0]) for key in range(60))
    assert same == 0 if answer == "picture" else 15 < same < 45
    here = data.train_set.__getitems__([(1, key) for key in range(60)])
    assert all(torch.equal(here[0][key], epochs[1][60 + key][0]) for key in range(60))


def test_one_scene_is_that_of_epoch_zero_in_any_batch():
    train = module("picture").train_set
    together = train.__getitems__([(e, i) for e in (0, 4) for i in range(10)])
    for row, (epoch, sample) in enumerate((e, i) for e in (0, 4) for i in range(10)):
        alone = train.__getitems__([(epoch, sample)])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b[3]) for a, b in zip(train[3], together, strict=True))
    assert not torch.equal(together[0][:10], together[0][10:])


def test_validation_and_test_pictures_are_the_same_in_every_run_and_epoch():
    one, other = module("picture", seed=3), module("picture", seed=4, workers=2)
    for loaders in ((one.val_dataloader(), other.val_dataloader()), (one.test_dataloader(), other.test_dataloader())):
        for a, b in zip(*loaders, strict=True):
            assert len(a) == 2
            assert all(map(torch.equal, a, b))
    assert torch.equal(one.test_set.__getitems__([(0, 1)])[0], one.test_set.__getitems__([(9, 1)])[0])
    assert not torch.equal(one.train_set[0][0], other.train_set[0][0])
    assert not torch.equal(one.val_set[0][0] - one.val_set[0][1], one.val_set[1][0] - one.val_set[1][1])


def test_the_statistics_are_those_of_the_scenes():
    pictures = painted(TRAIN, 600, 64, 6)[0] / 255
    assert pictures.mean() == pytest.approx(MEAN[0], abs=0.02)
    assert pictures.std() == pytest.approx(STD[0], abs=0.02)


def test_what_can_be_kept_has_as_many_views():
    assert [module(**given).views for given in ({}, {"views": 4}, {"augment": False})] == [None, 4, 1]
    assert module("picture", augment=False).views is None
    assert module("picture", augment=False, views=3).views == 3


def test_fingerprint_tells_what_is_seen():
    base = module("picture").fingerprint
    assert base == module("picture", seed=5, batch_size=4, workers=1, noise=0.2).fingerprint
    changed = [
        {"answer": "mask"}, {"answer": "count"}, {"scenes": 61}, {"validation": 21}, {"test": 31}, {"size": 33},
        {"items": 3}, {"noise": 0.1}, {"augment": False}, {"views": 2}, {"answer": "boxes"},
    ]  # fmt: skip
    assert len({base, *(module(**{"answer": "picture"} | given).fingerprint for given in changed)}) == 12


def test_preprocessing_says_how_a_picture_becomes_an_input():
    assert json.loads(json.dumps(module().preprocessing())) == {
        "kind": "images", "size": [32, 32], "resize": "crop", "channels": 1, "white": 65535, "mean": list(MEAN),
        "std": list(STD),
    }  # fmt: skip


def test_inputs_have_the_bits_of_an_image_set():
    ours = module().test_set
    theirs = ImageSet(ours.pictures, torch.zeros(30), mean=MEAN, std=STD)
    assert torch.equal(ours.__getitems__([(0, 2), (0, 7)])[0], theirs.__getitems__([(0, 2), (0, 7)])[0])


def test_counts_that_are_all_alike():
    with pytest.raises(UserError, match=r"data scenes: every training scene has \d garments"):
        build_data("scenes", answer="count", scenes=1)
