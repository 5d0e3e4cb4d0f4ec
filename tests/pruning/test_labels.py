import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lighten.pruning.labels import Labels, along, compact, spread, varies


def slow_sets(count, pairs):
    """Disjoint sets, one pair after the other."""
    sets = [{i} for i in range(count)]
    for a, b in pairs:
        union = sets[a] | sets[b]
        for i in union:
            sets[i] = union
    return sets


@given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12), max_size=5))
def test_unites_like_sets(rounds):
    labels = Labels()
    own = labels.fresh(20)
    for pairs in rounds:
        labels.unite(own[[a for a, _ in pairs]], own[[b for _, b in pairs]])
    roots = labels.find(own).tolist()
    sets = slow_sets(20, [pair for pairs in rounds for pair in pairs])
    assert [[roots[i] == roots[j] for j in range(20)] for i in range(20)] == [[j in s for j in range(20)] for s in sets]


@given(st.lists(st.tuples(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)))), max_size=6))
def test_labels_that_come_later_have_sets_of_their_own(rounds):
    """Each round brings new labels and unites some of all that there are; the least of a set stands for it."""
    labels, pairs = Labels(), []
    for count, among in rounds:
        new = labels.fresh(count)
        assert new.tolist() == list(range(labels.size - count, labels.size))
        some = [(a % labels.size, b % labels.size) for a, b in among]
        labels.unite(torch.tensor([a for a, _ in some], dtype=int), torch.tensor([b for _, b in some], dtype=int))
        pairs += some
    sets = slow_sets(labels.size, pairs)
    assert labels.find(torch.arange(labels.size)).tolist() == [min(own) for own in sets]


def test_what_a_union_costs_does_not_grow_with_the_labels_there_are():
    touched = []

    class Touched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            touched.append(found.numel() if isinstance(found, torch.Tensor) and found is not args[0] else 0)
            return found

    labels = Labels()
    labels.fresh(1_000_000)
    few = labels.fresh(8)
    with Touched():
        labels.unite(few[:4], few[4:])
        labels.fresh(1)
    assert max(touched) <= 8


def test_unite_along_unites_each_slice():
    labels = Labels()
    own = labels.fresh(12).reshape(2, 3, 2)
    vector = labels.unite_along(own, 1)
    assert vector.shape == (3,)
    for j in range(3):
        assert len(labels.find(own[:, j]).unique()) == 1
    assert len(labels.find(own).unique()) == 3


def test_reasons_follow_the_set_and_the_first_counts():
    labels = Labels()
    own = labels.fresh(4)
    labels.freeze(own[2:3], "first")
    labels.unite(own[:1], own[2:3])
    labels.freeze(own[:1], "second")
    assert labels.reasons() == {int(labels.find(own)[0]): "first"}
    assert labels.find(own)[0] == labels.find(own)[2]


def test_fixed_is_one_frozen_label():
    labels = Labels()
    made = labels.fixed((2, 3), "why")
    assert made.shape == (2, 3)
    assert labels.reasons() == {int(made[0, 0]): "why"}


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (4,), (2, 4)])
def test_spread_changes_no_label(shape):
    vector = torch.arange(4)
    dim = 1 if len(shape) > 1 else 0
    stored = along(vector, shape, dim).contiguous()
    lean = spread(stored)
    assert torch.equal(lean, stored)
    assert [varies(lean, d) for d in range(len(shape))] == [d == dim for d in range(len(shape))]
    assert compact(lean).numel() == 4
    assert compact(lean, keep=0).size(0) == shape[0]
