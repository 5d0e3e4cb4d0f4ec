import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import UserError
from lighten.pruning.allocate import Candidate, allocate


def candidate(scores, **facts):
    return Candidate("layer", torch.tensor(scores, dtype=torch.float32), **facts)


def test_the_lowest_scores_go_first():
    assert allocate([candidate([3, 1, 2, 1, 1, 9])], 0.5) == [[1, 3, 4]]
    assert set(allocate([candidate([3, 1, 2, 1, 1, 9])], 0.34)[0]) < {1, 3, 4}


def test_equal_scores_are_drawn_by_the_name_and_not_by_their_place():
    alike = [Candidate(name, torch.zeros(32)) for name in "abcd"]
    drawn = allocate(alike, 0.5)
    assert drawn == allocate(alike, 0.5)
    assert len({tuple(gone) for gone in drawn}) == 4
    assert all(gone != list(range(16)) for gone in drawn)
    for few, many in zip(allocate(alike, 0.25), drawn, strict=True):
        assert set(few) < set(many)


def test_globally_equal_scores_take_alike_shares_of_all_groups():
    alike = [Candidate(name, torch.zeros(width)) for name, width in (("a", 8), ("b", 16))]
    assert [len(gone) for gone in allocate(alike, 0.5, scope="global")] == [4, 8]


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({"gone": frozenset(range(8)), "start": 8}, 12),  # half of the eight that were left
        ({"gone": frozenset(range(8)), "start": 8, "absent": 0}, 8),  # half of sixteen is gone already
        ({"absent": 16}, 0),  # half of thirty-two, of which sixteen were cut
        ({"absent": 8}, 4),
    ],
    ids=["masked before, of the present", "masked before, of the original", "cut in half", "cut by a third"],
)
def test_an_amount_is_of_what_it_is_asked_of(facts, counts):
    for scope in ("uniform", "global"):
        assert len(allocate([candidate(range(16), **facts)], 0.5, scope=scope)[0]) == counts


def test_groups_that_must_not_lose_any_more_leave_the_amount_to_the_others():
    fixed, free = candidate(range(8), gone=frozenset({7}), fixed=True), candidate(range(8))
    for scope in ("uniform", "global"):
        assert allocate([fixed, free], 0.5, scope=scope) == [[7], [0, 1, 2, 3]]


@pytest.mark.parametrize(("width", "amount", "count"), [(5, 0.5, 2), (10, 0.29, 3), (100, 0.29, 29), (3, 0.1, 0)])
def test_rounds_to_the_nearest_count_and_halves_down(width, amount, count):
    assert len(allocate([candidate(range(width))], amount)[0]) == count


def test_what_is_gone_stays_gone_and_counts():
    scores = [5, 1, 2, 9, 3, 4]
    assert allocate([candidate(scores, gone=frozenset({3}))], 0.5) == [[1, 2, 3]]


def test_strength_takes_part_of_the_way():
    widths = [len(allocate([candidate(range(16))], 0.5, ramp=s)[0]) for s in (0.0, 0.25, 0.5, 1.0)]
    assert widths == [0, 2, 4, 8]


def test_global_takes_where_relative_scores_are_lowest():
    flat, peaked = candidate([10, 10, 10, 10]), candidate([0.1, 0.1, 0.1, 9.7])
    assert allocate([flat, peaked], 0.375, scope="global") == [[], [0, 1, 2]]


def test_global_leaves_each_group_one_channel():
    assert allocate([candidate([1, 1]), candidate([0, 0, 0, 100])], 0.66, scope="global") == [[0], [0, 1, 2]]


@pytest.mark.parametrize(
    ("facts", "align", "kept"),
    [
        ({}, 8, 8),
        ({}, 1, 10),
        ({"unit": 4}, 32, 8),
        ({"unit": 4}, 16, 12),
        ({"beside": 4}, 16, 12),
        ({"gone": frozenset(range(6))}, 8, 8),
        ({"gone": frozenset({0, 1, 2, 3, 4})}, 64, 10),
    ],
    ids=[
        "nearest",
        "none",
        "each channel is four",
        "halfway keeps more",
        "others in the layer",
        "no way back",
        "out of reach",
    ],
)
def test_align(facts, align, kept):
    (removed,) = allocate([candidate(range(20), **facts)], 0.5, align=align)
    assert 20 - len(removed) == kept


def test_align_ramps_to_the_aligned_width():
    counts = [len(allocate([candidate(range(20))], 0.4, align=8, ramp=s)[0]) for s in (0.0, 0.5, 1.0)]
    assert counts == [0, 2, 4]


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        ("uniform", r"amount=0.9 would empty layer \(4 channels\); ask for at most 0.87"),
        ("global", r"amount=0.9 would empty a layer: each of 2 groups keeps one of 8 channels; ask for at most 0.75"),
        ("globl", r"scope='globl': did you mean 'global'"),
    ],
)
def test_refuses(scope, says):
    with pytest.raises(UserError, match=says):
        allocate([candidate(range(4)), candidate(range(4))], 0.9, scope=scope)


widths = st.lists(st.integers(2, 40), min_size=1, max_size=5)


@given(widths, st.floats(0.01, 0.99), st.sampled_from(["uniform", "global"]), st.sampled_from([1, 4, 8]), st.data())
def test_a_ramp_only_ever_removes_more_and_empties_nothing(sizes, amount, scope, align, data):
    scores = [data.draw(st.lists(st.floats(0, 10, width=32), min_size=n, max_size=n)) for n in sizes]
    gone = [frozenset() for _ in sizes]
    for ramp in (0.2, 0.7, 1.0):
        try:
            removed = allocate(
                [candidate(s, gone=g) for s, g in zip(scores, gone, strict=True)],
                amount,
                scope=scope,
                align=align,
                ramp=ramp,
            )
        except UserError:
            return
        assert all(before <= set(now) for before, now in zip(gone, removed, strict=True))
        assert all(len(now) < n for now, n in zip(removed, sizes, strict=True))
        gone = [frozenset(now) for now in removed]
