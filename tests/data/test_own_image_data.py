import json

import lightning as L
import numpy as np
import pytest
import torch
from picture_files import class_folder, clothes_folder, noise, pair_folder, truncate, write
from torch import nn

from lighten.data import build_data, own_image_data
from lighten.data.preprocessing import reader_of
from lighten.errors import UserError
from lighten.utils.batch import KeyedBatch


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    return clothes_folder(tmp_path_factory.mktemp("clothes"), 120)


def module(folder, **options):
    data = build_data("images", folder=str(folder), **{"batch_size": 8} | options)
    data.setup("fit")
    return data


def test_nothing_is_read_when_it_is_built(tmp_path):
    data = build_data("images", folder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not there"):
        data.prepare_data()


def test_facts_and_batches_of_a_folder_of_classes(clothes):
    data = module(clothes)
    assert (data.task, data.num_classes, data.input_shape) == ("classification", 10, (1, 28, 28))
    assert data.class_names == tuple("0123456789")
    assert (data.train_samples, len(data.val_set), len(data.test_set), data.validation) == (84, 18, 18, 18)
    assert (data.views, data.keyed, data.name) == (None, False, "images")
    assert str(clothes) in data.licence
    images, labels = next(iter(data.train_dataloader()))
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (8, 1, 28, 28))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (8,))
    assert [len(labels) for _, labels in data.val_dataloader()] == [8, 8, 2]
    assert [len(labels) for _, labels in data.test_dataloader()] == [8, 8, 2]


def test_training_images_are_standardised_and_labels_are_their_folders(clothes):
    data = module(clothes, augment=False)
    images, labels = data.train_set.__getitems__([(0, sample) for sample in range(84)])
    assert abs(float(images.mean())) < 1e-4
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    names = [data.prepared.found.names[row] for row in data.prepared.of(0)]
    assert labels.tolist() == [int(name.split("/")[0]) for name in names]


def test_a_reader_makes_the_same_of_files_as_the_test_part_has(clothes, tmp_path):
    for options in ({}, {"size": 20, "resize": "pad", "channels": 3}):
        data = module(clothes, **options)
        settings = json.loads(json.dumps(data.preprocessing()))
        files = [data.prepared.found.files[row] for row in data.prepared.of(2)[:8]]
        (images,), keywords = reader_of(settings).read(files)
        assert keywords == {}
        assert torch.equal(images, next(iter(data.test_dataloader()))[0])


def test_what_was_found_is_said_once(clothes, capsys, monkeypatch):
    monkeypatch.setattr(own_image_data, "_TOLD", set())
    data = module(clothes)
    data.prepare_data()
    data.prepare_data()
    said = capsys.readouterr().out
    assert said == (
        f"data images: 84 training, 18 validation, 18 test of {clothes}; classification (a folder a class), "
        "10 classes; 28×28 grey by crop; augmented: crop 0.5, colour 0.2\n"
    )


def test_fingerprint_hangs_on_content_and_options_and_not_on_place_cache_or_seed(tmp_path):
    first = module(class_folder(tmp_path / "a", {"x": 20, "y": 20}))
    same = module(class_folder(tmp_path / "b", {"x": 20, "y": 20}), seed=3, cache="disk", workers=2, batch_size=4)
    assert same.fingerprint == first.fingerprint
    others = [
        module(tmp_path / "a", **options).fingerprint
        for options in ({"size": 9}, {"augment": False}, {"views": 2}, {"test": 0.3}, {"mixup": 0.1}, {"channels": 1})
    ]
    write(tmp_path / "b" / "x" / "3.png", noise(seed=12345))
    others.append(module(tmp_path / "b").fingerprint)
    assert len({first.fingerprint, *others}) == len(others) + 1


def test_flips_are_for_colours_and_pictures_keep_their_colours(clothes, tmp_path):
    assert not module(clothes).augmentation.flip
    assert module(clothes, flip=True).augmentation.flip
    assert module(class_folder(tmp_path / "classes", {"x": 10, "y": 10})).augmentation.flip
    pictures = module(pair_folder(tmp_path / "pictures", second="targets"), batch_size=4).augmentation
    assert (pictures.flip, pictures.crop, pictures.colour) == (True, 1.0, 0.0)
    assert module(clothes, augment=False).augmentation is None


def test_masks(tmp_path):
    data = module(pair_folder(tmp_path), batch_size=4, cutmix=0.5)
    images, masks = next(iter(data.train_dataloader()))
    assert (tuple(images.shape), tuple(masks.shape), masks.dtype) == ((4, 3, 32, 32), (4, 32, 32), torch.int64)
    assert set(masks.unique().tolist()) <= {0, 1, 2, 255}
    assert next(iter(data.val_dataloader()))[1][0].unique().tolist() == [0, 1, 2, 255]
    assert data.num_classes == 3
    with pytest.raises(UserError, match="mixup mixes pixels, and the classes of masks cannot be mixed"):
        module(tmp_path, mixup=0.5)


def test_pictures_are_standardised(tmp_path):
    data = module(pair_folder(tmp_path, second="targets"), batch_size=4, augment=False)
    _, pictures = data.train_set.__getitems__([(0, sample) for sample in range(data.train_samples)])
    assert pictures.mean((0, 2, 3)).abs().max() < 1e-4
    assert (pictures.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert data.num_classes == 3


def table(tmp_path, count=40):
    lines = ["image,price,weight,red,round"]
    for number in range(count):
        write(tmp_path / f"{number}.png", noise(8, 8, seed=number))
        lines.append(f"{number}.png,{number * 1.5 + 100},{number % 7},{number % 2},{number % 3 % 2}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines))
    return str(path)


def test_numbers_are_standardised(tmp_path):
    data = build_data("images", table=table(tmp_path), label_columns=["price", "weight"], batch_size=8, augment=False)
    data.setup("fit")
    labels = data.train_set.__getitems__([(0, sample) for sample in range(data.train_samples)])[1]
    assert (labels.dtype, tuple(labels.shape)) == (torch.float32, (28, 2))
    assert labels.mean(0).abs().max() < 1e-5
    assert (labels.std(0, correction=0) - 1).abs().max() < 1e-5
    back = labels.numpy() * data.task.std + data.task.mean
    rows = [int(data.prepared.found.names[row][:-4]) for row in data.prepared.of(0)]
    assert np.abs(back[:, 0] - (np.array(rows) * 1.5 + 100)).max() < 1e-3
    assert data.class_names == ("price", "weight")


def test_several_labels(tmp_path):
    data = build_data("images", table=table(tmp_path), label_columns=["red", "round"], batch_size=8)
    data.setup("fit")
    labels = next(iter(data.train_dataloader()))[1]
    assert (labels.dtype, tuple(labels.shape), data.task) == (torch.float32, (8, 2), "multilabel")
    assert set(labels.unique().tolist()) <= {0.0, 1.0}


def test_keys_and_views(clothes):
    data = module(clothes, views=3)
    data.keyed = True
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, KeyedBatch)
    assert data.views == 3
    assert module(clothes, augment=False).views == 1


def test_two_workers_give_the_same_batches_with_and_without_kept_images(clothes):
    batches = [
        list(module(clothes, cache=cache, workers=workers, mixup=0.3).train_dataloader())
        for cache, workers in (("memory", 0), ("disk", 2), ("none", 2))
    ]
    assert len(batches[0]) > 5
    for same in zip(*batches, strict=True):
        images, labels = zip(*same, strict=True)
        assert all(torch.equal(images[0], other) for other in images)
        assert all(torch.equal(labels[0], other) for other in labels)


class Net(L.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, classes))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("right", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def test_a_plain_fit_learns(clothes, tmp_path):
    torch.manual_seed(0)
    data = build_data("images", folder=str(clothes), batch_size=16, augment=False)
    trainer = L.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Net(10), data)
    assert trainer.callback_metrics["right"] > 0.4


def test_twelve_images(tmp_path):
    data = module(class_folder(tmp_path, {"x": 6, "y": 6}), batch_size=4)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [8, 2, 2]
    assert len(list(data.train_dataloader())) == 2


def test_300_classes_of_two_images(tmp_path):
    data = module(class_folder(tmp_path, {f"kind {n}": 2 for n in range(300)}, height=4, width=4))
    assert data.num_classes == 300
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert len(labels) == 90
    assert len(data.train_set) == 420


def test_broken_images_are_named_and_left_out(tmp_path):
    class_folder(tmp_path, {"x": 60, "y": 60})
    truncate(tmp_path / "x" / "5.png")
    with pytest.warns(UserWarning, match=r"1 of 120 images cannot be read: x/5\.png \(.*truncated.*\); they"):
        data = module(tmp_path)
    assert sum(map(len, (data.train_set, data.val_set, data.test_set))) == 119


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 0}, "batch_size=0, expected an integer of at least 1"),
        ({"workers": -1}, "workers=-1, expected an integer of at least 0"),
        ({"views": 0}, "views=0, expected an integer of at least 1"),
        ({"views": 2, "augment": False}, "views=2 with augment=false: there is one view"),
        ({"crop": 2.0}, r"crop=2\.0, expected a share of the area"),
    ],
)
def test_values_out_of_range_are_refused(clothes, options, line):
    with pytest.raises(UserError, match=line):
        module(clothes, **options)
