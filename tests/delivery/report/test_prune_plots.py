"""What the pruning plots say and draw, read back from their SVG."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from finished_run import make_group, make_plan

from lighten.delivery.report.prune_plots import (
    BINS,
    SMALLEST,
    asked,
    curve_drawings,
    cut_of,
    damage_at,
    heaviest,
    norm_drawings,
    savings,
    savings_drawings,
    width_drawings,
)


def shapes(panel, css):
    """The drawing's elements of one class, as attributes."""
    return [e.attrib for e in ElementTree.fromstring(panel.svg).iter() if css in e.get("class", "").split()]


def label(panel):
    return ElementTree.fromstring(panel.svg).get("aria-label").replace("\N{NO-BREAK SPACE}", " ")


def start(path):
    return float(re.match(r"M([\d.]+) ", path["d"])[1])


@pytest.fixture
def group():
    """Four of six channels stay; one threshold on the norm parts them."""
    return replace(
        make_group("conv", 6, 4),
        kept=(1, 2, 4, 5), scores=(0.1, 1.0, 1.0, 0.2, 1.0, 1.0), norms=(0.4, 1.0, 2.0, 0.5, 1.0, 0.9),
        score="magnitude", why="norms widely spread", curve=((0.0, 0.0), (0.5, 0.2), (1.0, 2.0)),
    )  # fmt: skip


def test_what_was_achieved_stands_beside_what_was_asked():
    plan = replace(make_plan(amount=0.6, target="macs"), saved={"macs": 0.59, "parameters": 0.4, "latency": 0.3})
    assert asked(plan) == ("macs", 0.6)
    assert list(savings(plan).items()) == [
        ("channels", plan.sparsity), ("macs", 0.59), ("parameters", 0.4), ("latency", 0.3),
    ]  # fmt: skip
    panels = {panel.name: panel for panel in savings_drawings(plan)}
    assert list(panels) == ["channels", "MACs", "parameters", "latency"]
    assert label(panels["MACs"]) == "Share of the MACs that went. 59.0 % gone, 60.0 % asked"
    assert [len(panel.notes) for panel in panels.values()] == [1, 2, 1, 1]
    assert [name for name, panel in panels.items() if shapes(panel, "asked")] == ["MACs"]
    assert start(shapes(panels["MACs"], "asked")[0]) == pytest.approx(0.6 * SMALLEST[0])
    assert float(shapes(panels["MACs"], "bar")[0]["width"]) == pytest.approx(0.59 * SMALLEST[0], abs=0.1)


def test_a_plan_that_was_not_asked_for_a_share_has_no_mark():
    plan = replace(make_plan(), settings={})
    assert asked(plan) is None
    assert not any(shapes(panel, "asked") for panel in savings_drawings(plan))


@pytest.mark.parametrize("count", [1, 2, 4, 12, 24])
def test_widths_of_all_groups_are_drawn_once_and_to_one_scale(count):
    groups = [make_group(f"g{i}", 8 * (i + 1), 6 * (i + 1)) for i in range(count)]
    panels = width_drawings(groups)
    assert len(panels) <= 3
    kept = [float(bar["width"]) for panel in panels for bar in shapes(panel, "bar")]
    gone = [float(bar["width"]) for panel in panels for bar in shapes(panel, "gone")]
    assert kept == pytest.approx([kept[0] * (i + 1) for i in range(count)], abs=0.1 * count)
    assert gone == pytest.approx([(k / 3 - 2 if k > 9 else 1) for k in kept], abs=0.2)
    assert kept[-1] / 0.75 == pytest.approx(2 * SMALLEST[0] - 84, abs=0.2)
    assert all(f"g{i} {6 * (i + 1)} kept, {2 * (i + 1)} removed" in " ".join(map(label, panels)) for i in range(count))


def test_a_group_that_keeps_all_has_no_outline():
    whole = replace(make_group("conv", 8, 4), kept=tuple(range(8)))
    for panel in (*width_drawings([whole]), *norm_drawings([whole])):
        assert shapes(panel, "bar")
        assert shapes(panel, "gone") == []
        assert "8 kept, 0 removed" in label(panel)


def test_norms_of_kept_channels_point_up_and_of_removed_ones_down(group):
    (panel,) = norm_drawings([group])
    base = float(re.search(r" ([\d.]+)L", shapes(panel, "zero")[0]["d"])[1])
    up, down = shapes(panel, "bar"), shapes(panel, "gone")
    assert all(float(bar["y"]) + float(bar["height"]) <= base for bar in up)
    assert all(float(bar["y"]) >= base for bar in down)
    step = (SMALLEST[0] - 4) / BINS
    bins = lambda bars: [int((float(bar["x"]) - 2) / step) for bar in bars]  # noqa: E731
    assert bins(up) == [8, 9, 17]
    assert bins(down) == [3, 4]
    heights = [float(bar["height"]) for bar in up]
    assert heights[1] == pytest.approx(2 * heights[0], abs=1)


def test_the_cut_is_drawn_where_one_norm_parts_the_channels(group):
    assert cut_of(group) == pytest.approx(0.7)
    (panel,) = norm_drawings([group])
    assert start(shapes(panel, "cut")[0]) == pytest.approx(2 + 0.7 / 2.0 * (SMALLEST[0] - 4), abs=0.1)
    assert label(panel).endswith("norms from 0.4 to 2, cut at 0.7")
    amid = replace(group, kept=(0, 1, 2, 3), norms=(0.4, 1.0, 2.0, 0.5, 1.0, 0.9))
    assert cut_of(amid) is None
    (panel,) = norm_drawings([amid])
    assert shapes(panel, "cut") == []
    assert "cut" not in label(panel)


def test_a_panel_tells_the_score_and_the_reason_where_there_is_one(group):
    assert norm_drawings([group])[0].notes == ("4 kept, 2 removed", "magnitude: norms widely spread")
    assert norm_drawings([replace(group, why="")])[0].notes[1:] == ("magnitude",)
    assert norm_drawings([replace(group, norms=())]) == []


def test_norms_that_are_all_zero_are_drawn(group):
    assert label(norm_drawings([replace(group, norms=(0.0,) * 6)])[0]).startswith("Norms of conv. 4 kept")


def test_the_chosen_share_is_marked_on_the_curve(group):
    assert damage_at(group, 1 / 3) == pytest.approx(0.2 * (1 / 3) / 0.5)
    (panel,) = curve_drawings([group])
    assert panel.notes == ("33\N{NO-BREAK SPACE}% go: 0.13 nats",)
    assert label(panel).endswith("Damage rises to 2 nats at 100 %")
    (ring,) = shapes(panel, "chosen")
    assert float(ring["cx"]) == start(shapes(panel, "cut")[0]) == pytest.approx(40 + (SMALLEST[0] - 52) / 3, abs=0.1)
    path = [tuple(map(float, p.split())) for p in shapes(panel, "curve")[0]["d"][1:].split("L")]
    left, right = next((a, b) for a, b in pairwise(path) if a[0] <= float(ring["cx"]) <= b[0])
    assert right[1] - 0.5 <= float(ring["cy"]) <= left[1] + 0.5


def test_beyond_the_last_probe_there_is_a_line_and_no_ring(group):
    (panel,) = curve_drawings([replace(group, curve=((0.0, 0.0), (0.25, 0.1)))])
    assert panel.notes[0].endswith("beyond the probe")
    assert shapes(panel, "cut")
    assert shapes(panel, "chosen") == []


def test_a_curve_ends_where_its_damage_is_infinite(group):
    (panel,) = curve_drawings([replace(group, curve=((0.0, 0.0), (0.5, 0.2), (1.0, float("inf"))))])
    assert label(panel).endswith("Damage rises to 0.2 nats at 50 %")


def test_curves_share_their_axes_and_stay_inside_them(group):
    hard = replace(group, name="hard", curve=((0.0, 0.0), (0.5, 30.0), (1.0, 40.0)))
    soft = replace(group, name="soft", curve=((0.0, 0.0), (0.5, 1e-9), (1.0, 1e-8)))
    panels = curve_drawings([hard, soft, replace(group, name="unknown", curve=())])
    assert [panel.name for panel in panels] == ["hard", "soft"]
    axes = [re.findall(r">([\d.e-]+)</text>", panel.svg) for panel in panels]
    assert axes == [["0.01", "0.1", "1", "10", "100"]] * 2
    heights = [float(p.split()[1]) for panel in panels for p in shapes(panel, "curve")[0]["d"][1:].split("L")]
    assert min(heights) >= 8
    assert max(heights) <= SMALLEST[1] + 12 - 20
    assert curve_drawings([replace(group, curve=())]) == []


def test_curves_without_damage_are_drawn(group):
    (panel,) = curve_drawings([replace(group, curve=((0.0, 0.0), (1.0, 0.0)))])
    assert panel.notes[0].endswith("go: 0 nats")


def test_the_heaviest_groups_stay_in_the_order_of_the_network():
    groups = [replace(make_group(f"g{i}", 8 + i, 4), macs=macs) for i, macs in enumerate([0.1, 0.3, 0.2, 0.1])]
    assert [g.name for g in heaviest(groups, 2)] == ["g1", "g2"]
    assert [g.name for g in heaviest(groups, 3)] == ["g1", "g2", "g3"]
    assert heaviest(groups) == groups
