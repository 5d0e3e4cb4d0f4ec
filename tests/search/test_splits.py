import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from lighten.data.registry import build_data
from lighten.errors import UserError
from lighten.search.splits import splits_of


def numbered(first, count):
    """Samples that are their own number."""
    return TensorDataset(torch.arange(first, first + count), torch.zeros(count, dtype=torch.int64))


class Own(L.LightningDataModule):
    def __init__(self, train=200, val=100, test=80, **settings):
        super().__init__()
        self.sets = {"train": numbered(0, train), "val": numbered(1000, val), "test": numbered(2000, test)}
        self.settings = {"batch_size": 16} | settings

    def train_dataloader(self):
        return DataLoader(self.sets["train"], shuffle=True, **self.settings)

    def val_dataloader(self):
        return DataLoader(self.sets["val"], **self.settings)

    def test_dataloader(self):
        return DataLoader(self.sets["test"], **self.settings)


class Untested(Own):
    test_dataloader = L.LightningDataModule.test_dataloader


def numbers(loader):
    return [int(i) for batch in loader for i in batch[0]]


def parts(splits):
    return [numbers(getattr(splits, name)) for name in ("guide", "select", "confirm")]


def together(*found):
    return [number for each in found for number in each]


def refused(datamodule, match):
    with pytest.raises(UserError, match=match) as caught:
        splits_of(datamodule)
    assert "\n" not in str(caught.value)


def test_validation_is_halved_and_the_test_part_confirms():
    guide, select, confirm = parts(splits := splits_of(Own()))
    assert sorted(guide + select) == list(range(1000, 1100))
    assert confirm == list(range(2000, 2080))
    assert splits.samples == {"train": 200, "guide": 30, "select": 70, "confirm": 80}
    assert sorted(numbers(splits.train)) == list(range(200))


def test_the_same_for_a_seed_and_another_for_another():
    assert parts(splits_of(Own(), seed=3)) == parts(splits_of(Own(), seed=3))
    assert parts(splits_of(Own(), seed=3))[0] != parts(splits_of(Own(), seed=4))[0]


class SameTwice(Own):
    def test_dataloader(self):
        return DataLoader(numbered(1000, 100), batch_size=16)  # made anew, as many do


class NoTests(Own):
    def test_dataloader(self):
        return []


@pytest.mark.parametrize("kind", [Untested, SameTwice, NoTests])
def test_without_a_test_part_validation_is_cut_in_three(kind):
    found = parts(splits_of(kind()))
    assert sorted(together(*found)) == list(range(1000, 1100))
    assert sorted(map(len, found)) == [30, 35, 35]


def doubled(samples):
    return torch.stack([s[0] for s in samples]) * 2, len(samples)


def test_a_part_keeps_the_settings_of_its_loader():
    splits = splits_of(Own(collate_fn=doubled, num_workers=1))
    assert (splits.guide.batch_size, splits.guide.num_workers, splits.guide.collate_fn) == (16, 1, doubled)
    assert [len(batch[0]) for batch in splits.guide] == [16, 14]
    assert numbers(splits.confirm) == list(range(4000, 4160, 2))


class Shuffled(Own):
    def val_dataloader(self):
        return DataLoader(self.sets["val"], batch_size=16, shuffle=True)


def test_a_shuffled_validation_part_is_the_same_by_sample():
    assert parts(splits_of(Shuffled())) == parts(splits_of(Own()))


class OwnBatches(Own):
    def val_dataloader(self):
        batches = [list(range(i, i + 10)) for i in range(20, 100, 10)]
        return DataLoader(self.sets["val"], batch_sampler=batches)


def test_a_batch_sampler_of_ones_own_says_which_samples_there_are():
    splits = splits_of(OwnBatches())
    assert splits.guide.batch_size == 10
    assert sorted(together(*parts(splits)[:2])) == list(range(1020, 1100))


class Drawn(L.LightningDataModule):
    """As many write it: all three parts drawn by each setup, without a generator."""

    def setup(self, stage):
        self.parts = random_split(numbered(0, 300), [100, 100, 100])

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=10)

    def test_dataloader(self):
        return DataLoader(self.parts[2], batch_size=10)


def test_a_draw_without_a_generator_is_repeated_and_leaves_the_process_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    first = splits_of(Drawn())
    after = torch.rand(1)
    assert np.random.random() == np.random.RandomState(1).random()  # noqa: NPY002
    assert random.random() == random.Random(1).random()
    torch.manual_seed(2)
    second = splits_of(Drawn())
    assert parts(first) == parts(second)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert len(set(together(numbers(first.train), *parts(first)))) == 300


def test_what_is_set_up_stays_as_the_model_was_trained_with_it():
    data = Drawn()
    data.setup("fit")
    train = set(data.parts[0].indices)
    splits = splits_of(data)
    assert set(numbers(splits.train)) == train
    assert not train & set(together(*parts(splits)))


def test_data_of_the_package_by_sample():
    data = build_data("fashion_mnist", validation=120, batch_size=32)
    splits = splits_of(data)
    guide, select = (torch.cat([batch[0] for batch in loader]) for loader in (splits.guide, splits.select))
    rows = data.val_set.__getitems__([(0, i) for i in splits.guide.dataset.samples])[0]
    assert torch.equal(guide, rows)
    assert len(select) == 90
    assert sorted(splits.guide.dataset.samples + splits.select.dataset.samples) == list(range(120))
    assert torch.equal(splits.guide.dataset[3][0], guide[3])


class Broken(Own):
    def __init__(self, **loaders):
        super().__init__()
        for name, loader in loaders.items():
            setattr(self, f"{name}_dataloader", lambda loader=loader: loader)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


class Sizeless(Dataset):
    def __getitem__(self, i):
        return i


BASE = numbered(0, 300)


@pytest.mark.parametrize(
    ("datamodule", "match"),
    [
        (Broken(val=None), "has no val_dataloader; hold samples out"),
        (L.LightningDataModule(), "has no train_dataloader"),
        (DataLoader(BASE), "datamodule is of type DataLoader, expected .*; .*from_datasets makes one"),
        ((DataLoader(BASE), DataLoader(BASE)), "datamodule is of type tuple, expected a LightningDataModule"),
        (None, "datamodule is of type NoneType, expected a LightningDataModule"),
        (L.LightningDataModule.from_datasets(BASE), "has no val_dataloader"),
        (Broken(val=[DataLoader(BASE), DataLoader(BASE)]), "val_dataloader gives 2 loaders, expected one"),
        (Broken(val=[1, 2]), "val_dataloader gives 2 loaders"),
        (Broken(val=["x"]), "gives str, expected a torch DataLoader"),
        (Broken(val=DataLoader(Stream())), "iterable data set"),
        (Broken(train=DataLoader(Stream())), "train_dataloader has an iterable data set"),
        (Broken(test=DataLoader(BASE, batch_size=None)), "batch_size=None"),
        (Own(val=59), "the validation part has 59 samples, expected 60 or more for 2 parts; hold out more"),
        (Untested(val=80), "has 80 samples, expected 90 or more for 3 parts; as no others are left to confirm by"),
        (Own(test=29), "the test part has 29 samples, expected 30"),
        (Broken(train=DataLoader(BASE), val=DataLoader(BASE)), "val_dataloader gives samples of training"),
        (
            Broken(train=DataLoader(Subset(BASE, range(200))), val=DataLoader(Subset(BASE, range(199, 300)))),
            "val_dataloader gives samples of training",
        ),
        (Broken(train=DataLoader(BASE), test=DataLoader(BASE)), "test_dataloader gives samples of training"),
        (
            Broken(val=DataLoader(BASE, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 300, 300))),
            "other samples each time",
        ),
    ],
)  # fmt: skip
def test_bad_data_are_one_line(datamodule, match):
    refused(datamodule, match)


class Failing(Own):
    def val_dataloader(self):
        raise OSError("no such folder\nlook again")


def test_a_loader_that_fails_is_named():
    refused(Failing(), "Failing: val_dataloader fails: no such folder look again")
