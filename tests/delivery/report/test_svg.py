from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighten.delivery.report.svg import downsample, means, shorten, spread, text, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.82, 0.93, [0.825, 0.85, 0.875, 0.9, 0.925]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_inside_and_are_few(low, span):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in found)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_their_order(positions):
    moved = spread(positions, 10, highest=200)
    order = sorted(range(len(positions)), key=positions.__getitem__)
    gaps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(gap >= 10 - 1e-9 for gap in gaps)
    assert max(moved) <= 200


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_out_keeps_both_extremes(values, limit):
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = downsample(points, limit)
    assert len(kept) <= max(limit, 2) + 2
    assert {min(v for _, v in kept), max(v for _, v in kept)} == {min(values), max(values)}
    assert kept == sorted(kept)


def test_means_are_of_stretches():
    assert means([(0, 1), (1, 3), (2, 5), (3, 7)], 2) == [(0.5, 2.0), (2.5, 6.0)]
    assert means([(0, 1)], 2) == [(0, 1)]


def test_long_names_lose_their_beginning():
    assert shorten("layer1.0.conv1", 14) == "layer1.0.conv1"
    assert shorten("layer1.0.conv1", 9) == "…0.conv1"
    assert len(shorten("x" * 99, 20)) == 20


def test_text_is_escaped():
    assert "&lt;b&gt;" in text(0, 0, "<b>")
