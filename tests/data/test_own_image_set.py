import numpy as np
import pytest
import torch
from picture_files import noise

from lighten.data.augmentation import Augmentation, mixing
from lighten.data.decode import Frame
from lighten.data.decoded import Sources, Store
from lighten.data.own_image_set import Answers, OwnImageSet
from lighten.training.order import OrderedLoader
from lighten.utils.batch import KeyedBatch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
COUNT = 24
EVERYTHING = {"flip": True, "crop": 0.5, "colour": 0.3, "erase": 0.3}
PLACES = [(epoch, sample) for epoch in (0, 3) for sample in range(COUNT)]


def dataset(*, seconds=None, labels=None, views=None, changes=None, **answers):
    pixels = np.stack([noise(20, 30, seed=seed) for seed in range(COUNT + 6)])
    arrays = {"pixels": pixels}
    if seconds is not None:
        arrays["seconds"] = seconds
    sources = Sources(tuple(map(str, range(COUNT + 6))), Frame((20, 30), "crop", 3))
    given = Answers(labels=torch.arange(COUNT) if labels is None and seconds is None else labels, **answers)
    how = Augmentation(seed=5, **changes) if changes is not None else None
    rows = np.arange(COUNT) + 3
    return OwnImageSet(Store(sources, arrays), rows, given, mean=MEAN, std=STD, augmentation=how, views=views), pixels


def test_without_augmentation_images_are_what_they_are():
    data, pixels = dataset()
    images, labels = data.__getitems__([(7, 4), (0, 0)])
    expected = ((pixels[[7, 3]] / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert np.abs(images.numpy() - expected).max() < 1e-5
    assert images.dtype == torch.float32
    assert labels.tolist() == [4, 0]
    assert torch.equal(data[4][0], images[0])


@pytest.mark.parametrize("mix", [{}, {"mixup": 0.4, "cutmix": 0.4}])
def test_a_sample_is_the_same_in_any_batch_and_another_one_each_epoch(mix):
    data, _ = dataset(changes=EVERYTHING | mix)
    together, labels = data.__getitems__(PLACES)
    for row, place in enumerate(PLACES):
        alone, label = data.__getitems__([place])
        assert torch.equal(alone[0], together[row])
        assert label[0] == labels[row]
    assert (together[:COUNT] - together[COUNT:]).abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("mix", [{}, {"mixup": 0.4, "cutmix": 0.4}])
def test_workers_and_a_resumed_epoch_give_the_same_batches(mix):
    def batches(workers, state=None):
        loader = OrderedLoader(dataset(changes=EVERYTHING | mix)[0], batch_size=5, seed=2, workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        out = [(batch, loader.state_dict()) for batch in loader]
        return [batch for batch, _ in out], [state for _, state in out]

    here, states = batches(0)
    apart, _ = batches(2)
    resumed, _ = batches(2, states[1])
    for expected, found in [*zip(here, apart, strict=True), *zip(here[2:], resumed, strict=True)]:
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


def test_views_come_in_turn_and_are_keyed():
    data, _ = dataset(changes=EVERYTHING, views=2)
    data.keyed = True
    first = data.__getitems__([(0, 3), (1, 3), (2, 3)])
    assert isinstance(first, KeyedBatch)
    assert first.keys.tolist() == [3, COUNT + 3, 3]
    assert torch.equal(first.inputs[0], first.inputs[2])
    assert not torch.equal(first.inputs[0], first.inputs[1])


def mixed_reference(data, plain, labels_of):
    """Yield (row, image, label) of each mixed sample, put together from samples that are not mixed."""
    how = data.augmentation
    epochs, samples = np.array(PLACES).T
    plan = mixing(how, how.draw(epochs, samples), (20, 30))
    partners = how.partners(epochs, samples, COUNT)
    for row, (epoch, sample) in enumerate(PLACES):
        (own, label), (other, second) = (
            [part[0].clone() for part in plain.__getitems__([(epoch, one)])] for one in (sample, int(partners[row]))
        )
        share = float(plan.shares[row])
        if plan.cut[row]:
            top, left, bottom, right = plan.boxes[row].tolist()
            for one, two in ((own, other), (label, second)):
                if one.ndim > 1:
                    one[..., top:bottom, left:right] = two[..., top:bottom, left:right]
        elif plan.mixed[row]:
            own = share * own + (1 - share) * other
        yield row, own, labels_of(label, second, share, bool(plan.mixed[row]))


@pytest.mark.parametrize("mix", [{"mixup": 0.7}, {"cutmix": 0.7}, {"mixup": 0.4, "cutmix": 0.4}])
def test_classes_stay_and_numbers_are_mixed_as_images_are(mix):
    numbers = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0))
    for labels, label_of in (
        (None, lambda own, other, share, mixed: own),
        (numbers, lambda own, other, share, mixed: share * own + (1 - share) * other),
    ):
        data, _ = dataset(changes=EVERYTHING | mix, labels=labels)
        plain, _ = dataset(changes=EVERYTHING, labels=labels)
        images, found = data.__getitems__(PLACES)
        changed = 0
        for row, image, label in mixed_reference(data, plain, label_of):
            assert torch.allclose(images[row], image, atol=1e-5)
            assert torch.allclose(found[row].float(), label.float(), atol=1e-5)
            changed += not torch.equal(image, plain.__getitems__([PLACES[row]])[0][0])
        assert changed > len(PLACES) / 2


def test_masks_are_cut_and_pictures_mixed_as_images_are():
    values = np.stack([noise(20, 30, 1, seed=seed) % 3 * 100 for seed in range(COUNT + 6)])
    lookup = torch.full((256,), -1)
    lookup[[0, 100, 200]] = torch.tensor([2, 0, 1])
    data, _ = dataset(seconds=values, classes=lookup, changes=EVERYTHING | {"cutmix": 0.6})
    plain, _ = dataset(seconds=values, classes=lookup, changes=EVERYTHING)
    masks = data.__getitems__(PLACES)[1]
    assert (masks.dtype, tuple(masks.shape)) == (torch.int64, (len(PLACES), 20, 30))
    assert masks.unique().tolist() == [0, 1, 2]
    for row, _, mask in mixed_reference(data, plain, lambda own, other, share, mixed: own):
        assert torch.equal(masks[row], mask)

    pictures = np.stack([noise(20, 30, 3, seed=seed + 50) for seed in range(COUNT + 6)])
    settings = {"seconds": pictures, "mean": (0.5,) * 3, "std": (0.1,) * 3}
    data, _ = dataset(**settings, changes=EVERYTHING | {"mixup": 0.3, "cutmix": 0.3})
    plain, _ = dataset(**settings, changes=EVERYTHING)
    found = data.__getitems__(PLACES)[1]

    def label_of(own, other, share, mixed):
        return share * own + (1 - share) * other if mixed else own

    for row, _, picture in mixed_reference(data, plain, label_of):
        assert torch.allclose(found[row], picture, atol=1e-4)


def test_masks_and_pictures_without_augmentation():
    values = np.stack([noise(20, 30, 1, seed=seed) % 3 for seed in range(COUNT + 6)])
    lookup = torch.full((256,), -1)
    lookup[:3] = torch.tensor([2, 0, 1])
    masks = dataset(seconds=values, classes=lookup)[0].__getitems__([(0, 1), (0, 9)])[1]
    assert np.array_equal(masks.numpy(), np.array([2, 0, 1])[values[[4, 12]]])


def test_pictures_that_are_their_own_targets_stay_so_under_flips_and_crops():
    pictures = np.stack([noise(20, 30, seed=seed) for seed in range(COUNT + 6)])
    data, _ = dataset(
        seconds=pictures, mean=MEAN, std=STD, changes={"flip": True, "crop": 0.4, "colour": 0.0}, views=None
    )
    images, targets = data.__getitems__(PLACES)
    assert torch.equal(images, targets)


def test_what_is_erased_has_the_mean_colour():
    data, _ = dataset(changes={"flip": False, "crop": 1.0, "colour": 0.0, "erase": 1.0})
    plain, _ = dataset()
    images, whole = data.__getitems__(PLACES)[0], plain.__getitems__(PLACES)[0]
    erased = (images != whole).any(1)
    assert images.permute(0, 2, 3, 1)[erased].abs().max() < 0.02
    assert 0.02 < erased.float().mean() < 0.3
