import re
import xml.etree.ElementTree as ET

import pytest
from search_run import make_search, make_trials, trial

from lighten.delivery.report.search_figures import Search
from lighten.delivery.report.search_plots import (
    confirmation_plot,
    damage_drawings,
    frontier_plot,
    prediction_plot,
    time_plot,
)


def points(svg):
    """Each trial's point: number -> (css, x, y, what it says)."""
    found = {}
    for link in ET.fromstring(svg).iter("a"):
        (circle,) = link
        number = int(re.fullmatch(r"#trial-(\d+)", link.attrib["href"])[1])
        found[number] = (circle.attrib["class"], float(circle.attrib["cx"]), float(circle.attrib["cy"]), circle[0].text)
    return found


@pytest.mark.parametrize("along", ["latency_ms", "bytes"])
def test_each_measured_trial_is_a_point_that_is_in_order_and_says_what_it_is(along):
    search = Search(make_search())
    found = points(frontier_plot(search, along))
    assert set(found) == {0, 1, 2, 3, 4, 5}
    by_cost = sorted(found, key=lambda n: make_trials()[n]["measured"][along])
    assert by_cost == sorted(found, key=lambda n: found[n][1])
    inside = [0, 1, 2, 3, 4]  # 5 loses 41 points
    by_drop = sorted(inside, key=lambda n: make_trials()[n]["measured"]["drop"])
    assert by_drop == sorted(inside, key=lambda n: -found[n][2])
    assert {n: css for n, (css, *_) in found.items()} == {
        0: "disc student", 1: "dot teacher", 2: "disc student", 3: "dot teacher", 4: "disc compressed",
        5: "ring student",
    }  # fmt: skip
    assert "trial 4: 0.85 points, 0.075 ms, 118 kB (62 % of the MACs pruned" in found[4][3].replace("\xa0", " ")


def test_what_falls_apart_stands_at_the_upper_edge_and_does_not_flatten_the_rest():
    found = points(frontier_plot(Search(make_search()), "latency_ms"))
    assert found[5][2] == min(y for _, _, y, _ in found.values())
    assert "41.00 points" in found[5][3].replace("\xa0", " ")
    assert found[2][2] - found[4][2] > 15  # 0.4 points of drop


def test_the_needs_are_lines():
    lines = lambda svg: svg.count('class="cut"')  # noqa: E731
    needs = make_search()["needs"]
    assert lines(frontier_plot(Search(make_search()), "latency_ms")) == 1
    assert lines(frontier_plot(Search(make_search(needs=needs | {"latency_ms": 0.1})), "latency_ms")) == 2
    assert lines(frontier_plot(Search(make_search(needs=needs | {"latency_ms": 0.1})), "bytes")) == 1
    assert lines(frontier_plot(Search(make_search(needs=needs | {"max_drop": None})), "bytes")) == 0


def test_a_search_that_has_hardly_begun_is_drawn():
    nothing = Search(make_search("running", trials=[], frontier=[], look=None, seconds={}, original=None))
    assert frontier_plot(nothing, "bytes") is None
    assert prediction_plot(nothing, "drop") is None
    assert time_plot(nothing) is None
    assert confirmation_plot(nothing) is None
    assert damage_drawings(nothing) == []
    one = Search(make_search("running", trials=[trial(0, 0.0, 0.1, 1000, (0.0, 0.1))], frontier=[0], original=None))
    for svg in (frontier_plot(one, "bytes"), prediction_plot(one, "drop"), prediction_plot(one, "latency_ms")):
        assert list(points(svg)) == [0]
        assert "nan" not in svg


def test_predictions_that_are_right_lie_on_the_diagonal():
    exact = [trial(n, 0.002 * n, 0.1 + n, 1000, (0.002 * n, 0.1 + n)) for n in range(4)]
    search = Search(make_search(trials=exact, frontier=[0], chosen=None))
    for key in ("latency_ms", "drop"):
        svg = prediction_plot(search, key)
        (guide,) = re.findall(r'class="guide" d="M([\d. ]+)L([\d. ]+)"', svg)
        (x1, y1), (x2, y2) = (map(float, end.split()) for end in guide)
        for _, x, y, _ in points(svg).values():
            assert y == pytest.approx(y1 + (y2 - y1) * (x - x1) / (x2 - x1), abs=0.2)


def test_the_bound_is_green_within_the_need_and_orange_beyond():
    assert "curve compressed" in confirmation_plot(Search(make_search()))
    assert "curve prune" in confirmation_plot(Search(make_search("not met")))


def test_each_group_that_can_be_cut_has_its_curve():
    drawings = damage_drawings(Search(make_search()))
    assert [d.name for d in drawings] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1)]
    assert drawings[0].notes == ("75\xa0% cut: 0.01125", "norms do not rank it")
