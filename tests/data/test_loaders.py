"""Loaders read batch size, seed and workers off the data module."""

from types import SimpleNamespace

import pytest
import torch

from lighten.data.images import ImageSet
from lighten.data.loaders import check_validation, in_order, shuffled
from lighten.errors import UserError


@pytest.fixture
def data():
    pixels = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1)
    samples = ImageSet(pixels, torch.arange(10), mean=(0.0,), std=(1.0,))
    return SimpleNamespace(
        name="toy", batch_size=4, seed=1, workers=0, validation=3, keyed=True, train_set=samples, trainer=None
    )


def test_training_batches_are_full_shuffled_and_keyed(data):
    labels = [batch.labels for batch in shuffled(data)]
    assert [len(x) for x in labels] == [4, 4]
    found = torch.cat(labels).tolist()
    assert len(set(found)) == 8
    assert found != sorted(found)
    assert torch.equal(torch.cat([batch.keys for batch in shuffled(data)]), torch.cat(labels))


def test_the_others_hold_all_samples_in_order(data):
    assert [y.tolist() for _, y in in_order(data, data.train_set)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_split_that_leaves_nothing_is_refused(data):
    check_validation(data, 4)
    with pytest.raises(UserError, match="data toy: validation=3 leaves nothing of 3 training samples"):
        check_validation(data, 3)
