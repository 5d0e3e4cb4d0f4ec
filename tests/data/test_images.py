import hashlib
import json
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from lighten.data.images import Facts, ImageData, Images, ImageSet, augment, draw_augmentation
from lighten.errors import UserError


def facts(**changes):
    given = {
        "class_names": ("a", "b"), "input_shape": (1, 4, 5), "mean": (0.25,), "std": (0.5,), "licence": "none",
        "shift": 2,
    }  # fmt: skip
    return Facts(**given | changes)


def images(train=40, test=6, channels=1):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (train + test, channels, 4, 5), generator=draw, dtype=torch.uint8)
    labels = torch.arange(train + test) % 2
    return Images(pixels[:train], labels[:train], pixels[train:], labels[train:])


def module(**changes):
    given = {"batch_size": 8, "seed": 0, "workers": 0, "validation": 10, "augment": True}
    data = ImageData(facts(), images, **given | changes)
    data.setup("fit")
    return data


def augment_reference(image, down, right, flip):
    """Pixel by pixel: where does each output pixel come from?"""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y - down, (width - 1 - x if flip else x) - right
            if 0 <= source_y < height and 0 <= source_x < width:
                out[:, y, x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_agrees_with_pixel_by_pixel_reference(channels):
    pixels = images(60, 0, channels).train
    every = torch.tensor([(d, r, f) for d in range(-2, 3) for r in range(-2, 3) for f in (0, 1)])
    down, right, flip = every.T
    moved = augment(pixels[: len(every)], down, right, flip.bool())
    for image, out, (d, r, f) in zip(pixels, moved, every.tolist(), strict=False):
        assert torch.equal(out, augment_reference(image, d, r, f))


def test_draws_cover_shifts_and_flips_and_depend_on_all_three_coordinates():
    samples = np.arange(2000)
    epochs = np.zeros(2000, np.int64)
    down, right, flip = draw_augmentation(0, epochs, samples, shift=2)
    for shift in (down, right):
        assert sorted(set(shift.tolist())) == [-2, -1, 0, 1, 2]
    assert 900 < flip.sum() < 1100
    assert not torch.equal(down, right)
    for other in (draw_augmentation(1, epochs, samples, shift=2), draw_augmentation(0, epochs + 1, samples, shift=2)):
        assert (other[0] == down).float().mean() < 0.3


def test_a_sample_is_the_same_in_any_batch():
    data = ImageSet(images().train, images().train_labels, mean=(0,), std=(1,), seed=3)
    together, labels = data.__getitems__([(e, i) for e in (0, 5) for i in range(10)])
    for row, (epoch, sample) in enumerate((e, i) for e in (0, 5) for i in range(10)):
        alone, label = data.__getitems__([(epoch, sample)])
        assert torch.equal(alone[0], together[row])
        assert label[0] == labels[row]
    assert not torch.equal(together[:10], together[10:])


def test_values_are_normalised_per_channel():
    pixels = images(4, 0, 3).train
    data = ImageSet(pixels, torch.zeros(4, dtype=torch.int64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch, labels = data.__getitems__([(7, 2), (7, 0)])
    expected = pixels[[2, 0]].double() / 255
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)]):
        expected[:, c] = (expected[:, c] - mean) / std
    assert torch.allclose(batch.double(), expected, atol=1e-6)
    assert (batch.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_one_image_by_index():
    data = ImageSet(images().train, images().train_labels, mean=(0,), std=(1,))
    image, label = data[3]
    assert torch.allclose(255 * image, images().train[3].float())
    assert label == 1


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(("seed", "views"), [(None, None), (3, None), (3, 2)])
def test_one_image_is_that_of_epoch_zero(keyed, seed, views):
    data = ImageSet(images().train, images().train_labels, mean=(0,), std=(1,), seed=seed, views=views, keyed=keyed)
    image, label = data[3]
    assert torch.equal(image, data.__getitems__([(0, 3)])[0][0])
    assert label == 1


def by_key(loader, epoch):
    loader.order.set_epoch(epoch)
    return {key: image for inputs, _, keys in loader for key, image in zip(keys.tolist(), inputs, strict=True)}


@pytest.mark.parametrize("workers", [0, 2])
def test_views_have_their_own_images_and_keys_and_come_again(workers):
    data = module(views=2, batch_size=10, workers=workers)
    data.keyed = True
    loader = data.train_dataloader()
    epochs = [by_key(loader, epoch) for epoch in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(30)), list(range(30, 60))] * 2
    for first, again in (epochs[::2], epochs[1::2]):
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert sum(torch.equal(epochs[0][key], epochs[1][30 + key]) for key in range(30)) < 6


def test_keys_name_the_sample():
    data = module(views=3, batch_size=30)
    data.keyed = True
    loader = data.train_dataloader()
    for epoch in range(5):
        loader.order.set_epoch(epoch)
        ((inputs, labels, keys),) = loader
        assert keys.dtype == torch.int64
        assert torch.equal(labels, data.train_set.labels[keys % 30])
        assert (keys // 30 == epoch % 3).all()
        assert torch.equal(inputs, data.train_set.__getitems__([(epoch, k) for k in (keys % 30).tolist()])[0])


def test_keys_without_views_go_on_with_the_epoch_and_without_augmentation_stay():
    for given, expected in (({}, range(210, 240)), ({"augment": False}, range(30))):
        data = module(**given)
        data.keyed = True
        keys = data.train_dataloader().dataset.__getitems__([(7, sample) for sample in range(30)])[2]
        assert keys.tolist() == list(expected)


def test_only_training_batches_have_keys_and_only_when_asked():
    data = module(views=2)
    assert all(len(batch) == 2 for batch in data.train_dataloader())
    data.keyed = True
    assert all(len(batch) == 3 for batch in data.train_dataloader())
    assert all(len(batch) == 2 for loader in (data.val_dataloader(), data.test_dataloader()) for batch in loader)
    data.keyed = False
    assert all(len(batch) == 2 for batch in data.train_dataloader())


class Memorizer(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        return self.weight * batch[0].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec")
def test_batches_that_are_learned_by_heart_are_the_same_in_each_epoch():
    model = Memorizer()
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(overfit_batches=2, enable_checkpointing=False, log_every_n_steps=1, **settings)
    data = module(augment=False)
    trainer.fit(model, data)
    first, second, *again = model.seen
    assert torch.equal(torch.cat([first, second]), data.train_set.__getitems__([(0, i) for i in range(16)])[0])
    assert torch.equal(torch.cat(again), torch.cat([first, second]))


def test_keys_and_enough_views_change_no_image():
    plain, keyed = module().train_dataloader(), module(views=5)
    keyed.keyed = True
    others = keyed.train_dataloader()
    for epoch in range(5):
        plain.order.set_epoch(epoch)
        others.order.set_epoch(epoch)
        for (a, la), (b, lb, _) in zip(plain, others, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


def test_what_the_data_say_of_themselves():
    assert (module().task, module().keyed, module().train_samples) == ("classification", False, 30)
    assert [module(**given).views for given in ({}, {"views": 4}, {"augment": False})] == [None, 4, 1]


def test_splits_are_apart_and_the_same_for_every_seed():
    a, b = module(seed=0), module(seed=1)
    assert torch.equal(a.val_set.pixels, b.val_set.pixels)
    assert (len(a.train_set), len(a.val_set), len(a.test_set)) == (30, 10, 6)
    rows = [tuple(p.flatten().tolist()) for s in (a.train_set, a.val_set) for p in s.pixels]
    assert sorted(rows) == sorted(tuple(p.flatten().tolist()) for p in images().train)
    assert torch.bincount(a.val_set.labels).tolist() == [5, 5]


def test_only_training_images_are_augmented():
    data = module()
    for loader, kept in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        seen = torch.cat([inputs for inputs, _ in loader])
        assert torch.allclose(seen, (kept.pixels / 255 - 0.25) / 0.5, atol=1e-6)
    plain = {tuple(p.flatten().tolist()) for p in data.train_set.pixels}
    seen = torch.cat([inputs for inputs, _ in data.train_dataloader()])
    back = ((seen * 0.5 + 0.25) * 255).round().to(torch.uint8)
    assert sum(tuple(p.flatten().tolist()) in plain for p in back) < 12


def test_augment_false_shows_training_images_as_they_are():
    data = module(augment=False, batch_size=30)
    ((inputs, labels),) = data.train_dataloader()
    back = ((inputs * 0.5 + 0.25) * 255).round().to(torch.uint8)
    found = sorted((p.flatten().tolist(), y) for p, y in zip(back, labels.tolist(), strict=True))
    kept = zip(data.train_set.pixels, data.train_set.labels.tolist(), strict=True)
    assert found == sorted((p.flatten().tolist(), y) for p, y in kept)


def test_workers_see_what_this_process_sees():
    alone, workers = module(), module(workers=2)
    for (a, la), (b, lb) in zip(alone.train_dataloader(), workers.train_dataloader(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)


def test_fingerprint_tells_what_is_seen():
    base = module().fingerprint
    assert base == module(seed=5, batch_size=4, workers=1).fingerprint
    changed = [{"validation": 12}, {"augment": False}, {"views": 1}, {"views": 2}]
    assert len({base, *(module(**given).fingerprint for given in changed)}) == 5
    assert module(augment=False, views=1).fingerprint == module(augment=False).fingerprint
    other = ImageData(facts(), lambda: images(42), batch_size=8, seed=0, workers=0, validation=10, augment=True)
    assert other.fingerprint != base


@pytest.mark.parametrize("augment", [True, False])
def test_fingerprints_from_before_there_were_views_stay(augment):
    data = ImageData(facts(), images, content="c", batch_size=8, seed=0, workers=0, validation=10, augment=augment)
    seen = json.dumps({"augment": augment, "content": "c", "validation": 10})
    assert data.fingerprint == hashlib.sha256(seen.encode()).hexdigest()


def test_images_are_read_once():
    calls = []
    data = ImageData(
        facts(), lambda: calls.append(1) or images(), batch_size=8, seed=0, workers=0, validation=10, augment=True
    )
    assert not calls
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert calls == [1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size=0, expected an integer of at least 1"),
        ({"workers": -1}, "workers=-1"),
        ({"validation": 0}, "validation=0"),
        ({"views": 0}, "views=0, expected an integer of at least 1"),
        ({"views": True}, "views=True"),
        ({"views": 2, "augment": False}, "views=2 with augment=False: there is one view; leave views out"),
        ({"validation": 40}, "validation=40 leaves nothing of 40"),
    ],
)
def test_bad_values(changes, says):
    with pytest.raises(UserError, match=says):
        module(**changes)


def test_a_batch_larger_than_the_training_part():
    with pytest.raises(UserError, match="batch_size=31, expected 1 to 30"):
        module(batch_size=31).train_dataloader()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_labels": torch.full((40,), 2)}, "training part: labels from 2 to 2, expected 0 to 1"),
        ({"test_labels": torch.full((6,), -1)}, "test part: labels from -1 to -1, expected 0 to 1"),
        ({"train_labels": torch.zeros(39, dtype=torch.int64)}, "training part: 40 images and 39 labels"),
        ({"test": torch.zeros(0, 1, 4, 5), "test_labels": torch.zeros(0)}, "test part: 0 images and 0 labels"),
        ({"test": torch.zeros(6, 1, 5, 4)}, r"test part: images are \(1, 5, 4\), expected \(1, 4, 5\)"),
    ],
)
def test_images_that_do_not_fit_their_labels(change, says):
    data = ImageData(
        facts(), lambda: replace(images(), **change), batch_size=8, seed=0, workers=0, validation=10, augment=True
    )
    with pytest.raises(UserError, match=says):
        data.prepare_data()


def test_images_of_another_shape():
    data = ImageData(facts(input_shape=(3, 4, 5)), images, batch_size=8, seed=0, workers=0, validation=10, augment=True)
    with pytest.raises(UserError, match=r"images are \(1, 4, 5\), expected \(3, 4, 5\)"):
        data.prepare_data()
