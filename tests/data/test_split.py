import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.data.split import stratified, whole_groups


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_it_is_a_partition_with_each_class_to_one_sample(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    rest, chosen = stratified(torch.tensor(labels), count)
    assert len(chosen) == count
    assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(len(labels)))
    for c in set(labels):
        exact = labels.count(c) * count / len(labels)
        assert abs(sum(labels[i] == c for i in chosen.tolist()) - exact) < 1


def test_choice_is_spread_over_the_data():
    labels = torch.arange(10_000) % 10
    _, chosen = stratified(labels, 1000)
    assert torch.bincount(labels[chosen]).tolist() == [100] * 10
    thirds = np.histogram(chosen.numpy(), bins=3, range=(0, 10_000))[0]
    assert thirds.min() > 280


@pytest.mark.parametrize("seed", [1, 2])
def test_random_state_has_no_say(seed):
    labels = torch.arange(100) % 3
    expected = stratified(labels, 10)[1]
    torch.manual_seed(seed)
    np.random.default_rng(seed)
    assert torch.equal(stratified(labels, 10)[1], expected)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data())
def test_groups_stay_whole(groups, data):
    keys = np.array(groups, np.uint64)
    count = data.draw(st.integers(0, len(set(groups))))
    rest, chosen = whole_groups(keys, torch.zeros(len(keys), dtype=torch.int64), count)
    assert sorted([*rest, *chosen]) == list(range(len(groups)))
    assert not {groups[i] for i in rest} & {groups[i] for i in chosen}
    assert len({groups[i] for i in chosen}) == count
