import itertools
import random

import pytest

from lighten.search.frontier import Point, best_of, excess, frontier_of
from lighten.search.needs import needs_of


def point(trial, drop, latency=1.0, size=100, bound=None, **figures):
    return Point(trial, f"trials/{trial}", 0.9 - drop, drop, {"latency_ms": latency, "bytes": size, **figures}, bound)


def test_the_frontier_is_that_of_every_pair_compared():
    draw = random.Random(0)
    for macs in (False, True):
        points = [point(i, *(draw.randrange(6) for _ in range(3)), macs=draw.randrange(1, 6)) for i in range(60)]
        needs = needs_of(0.01, {"macs": 3} if macs else None)

        def seen(p, macs=macs):
            return [p.drop, p.figures["latency_ms"], p.figures["bytes"], *([p.figures["macs"]] if macs else [])]

        expected = {
            p.trial
            for p in points
            if not any(
                all(a <= b for a, b in zip(seen(q), seen(p), strict=True)) and (seen(q) != seen(p) or q.trial < p.trial)
                for q in points
                if q is not p
            )
        }
        assert {p.trial for p in frontier_of(points, needs)} == expected
        for order in itertools.islice(itertools.permutations(frontier_of(points, needs)), 5):
            assert frontier_of(order, needs) == frontier_of(points, needs)


def test_what_was_not_measured_beats_nobody():
    whole, part = point(0, 0.01), Point(1, "trials/1", 0.9, 0.01, {"bytes": 100})
    assert frontier_of([part, whole], needs_of()) == [whole]


def test_the_best_is_the_fastest_and_smallest_that_meets():
    points = [point(0, 0.0, 4, 400), point(1, 0.008, 1, 110), point(2, 0.009, 1.2, 100), point(3, 0.02, 0.5, 50)]
    best, nearest = best_of(points, needs_of(0.01))
    assert best is nearest is points[1]


def test_a_target_alone_takes_what_loses_least():
    points = [point(0, 0.0, 4, 400), point(1, 0.03, 1, 110), point(2, 0.02, 1.9, 300), point(3, 0.05, 0.5, 50)]
    assert best_of(points, needs_of(target={"latency_ms": 2}))[0] is points[2]


def test_the_uncertainty_of_the_choice_is_kept_from_the_drop():
    points = [point(0, 0.009, 1, 100, bound=0.013), point(1, 0.002, 2, 200, bound=0.006)]
    assert best_of(points, needs_of(0.01))[0] is points[1]
    assert best_of([point(0, 0.009, bound=0.002)], needs_of(0.005))[0] is None  # a bound is not below what was measured


def test_the_nearest_breaks_its_worst_need_least():
    needs = needs_of(0.01, {"latency_ms": 2.0})
    points = [point(0, 0.0, 4.0), point(1, 0.015, 1.0), point(2, 0.03, 0.5)]
    assert best_of(points, needs) == (None, points[1])
    assert [excess(p, needs) for p in points] == pytest.approx([1.0, 0.5, 2.0])
    assert best_of([point(0, 0.004), point(1, 0.002)], needs_of(0.0))[1].trial == 1
    unmeasured = Point(0, "trials/0", 0.9, 0.0, {})
    assert best_of([unmeasured, points[0]], needs) == (None, points[0])
