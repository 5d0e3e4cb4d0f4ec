import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.data.find_images import TEST, TRAIN, VALIDATION
from lighten.data.shares import share_out
from lighten.errors import UserError

NAMES = [f"image {number}" for number in range(200)]


def share(keys, classes=None, test=0.15, validation=0.15):
    classes = np.zeros(len(keys), np.int64) if classes is None else np.array(classes)
    return share_out(keys, classes, test=test, validation=validation, where="here")


def test_shares_are_as_said_in_each_class():
    classes = np.arange(200) % 4
    parts = share(NAMES, classes, test=0.2, validation=0.1)
    for label in range(4):
        counts = np.bincount(parts[classes == label], minlength=3)
        assert counts[TEST] == 10
        assert counts[VALIDATION] == 5
        assert counts[TRAIN] == 35


def test_the_order_of_images_does_not_matter():
    classes = np.arange(200) % 4
    parts = share(NAMES, classes)
    turned = np.random.default_rng(0).permutation(200)
    assert np.array_equal(share([NAMES[place] for place in turned], classes[turned]), parts[turned])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.integers(1, 5))
def test_equal_keys_stay_together_and_each_class_is_in_training(groups, many):
    if len(set(groups)) < 3 * many + 4:
        return
    classes = np.array(groups) % many
    parts = share([str(group) for group in groups], classes)
    for group in set(groups):
        assert len(set(parts[np.array(groups) == group].tolist())) == 1
    assert set(classes.tolist()) == set(classes[parts == TRAIN].tolist())
    assert {TRAIN, VALIDATION, TEST} == set(parts.tolist())


def test_twelve_images_and_300_classes_of_two():
    assert np.bincount(share(NAMES[:12], np.arange(12) % 2)).tolist() == [8, 2, 2]
    keys = [f"image {number}" for number in range(600)]
    parts = share(keys, np.arange(600) % 300)
    assert np.bincount(parts).tolist() == [420, 90, 90]
    assert set((np.arange(600) % 300)[parts == TRAIN].tolist()) == set(range(300))


def test_a_share_of_zero_takes_nothing():
    assert np.bincount(share(NAMES[:20], test=0.0), minlength=3).tolist() == [17, 3, 0]


def test_too_few_are_refused():
    with pytest.raises(UserError, match=r"here: 1 different images, too few to take test=0.15 and validation=0.15 and"):
        share(["same"] * 10)
    with pytest.raises(UserError, match="2 different images, too few"):
        share(["a", "b"])
    assert sorted(share(["a", "b", "c"]).tolist()) == [TRAIN, VALIDATION, TEST]
