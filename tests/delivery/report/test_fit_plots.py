"""What the small plots along the fit say and draw, read back from their SVG."""

import math
import re
from html import unescape

import pytest
from finished_run import GROUPS, make_history

from lighten.delivery.folders.run import HistoryRows
from lighten.delivery.report.fit_plots import MAX_NAMED, fit_drawings


def drawings(rows):
    return {drawing.name: drawing for _, panels in fit_drawings(HistoryRows(rows)) for drawing in panels}


def said(drawing):
    return unescape(re.search('aria-label="([^"]*)"', drawing.svg)[1]).replace("\N{NO-BREAK SPACE}", " ")


def line(step, **metrics):
    return {"step": step, "progress": step / 10, "time": 2.0 * step, **metrics}


def test_the_last_values_are_told() -> None:
    rows = make_history()
    found, last = drawings(rows), rows[-1]
    assert said(found["Macro-F1"]) == (
        f"Macro-F1. Teacher ends at {last['teacher/macro_f1']:.1%}; "
        f"Student ends at {last['student/macro_f1']:.1%}".replace("%", " %")
    )
    assert f"loss ends at {last['gap/loss']:.3g}" in said(found["Gap: teacher minus student"])
    assert f"it ends at {last['gap/kl']:.3g}" in said(found["KL divergence in nats"])
    assert said(found["Shares of the losses"]).endswith("cross entropy ends at 20 %; soft labels ends at 80 %")
    assert said(found["Memory of the process (MB)"]).endswith("it ends at 852")
    assert "asked ends at 42.0 %; channels ends at 42.0 %; MACs ends at 60.0 %" in said(
        found["Pruned: asked, channels, MACs"]
    )


def test_sections_are_those_of_the_dashboard_that_have_something() -> None:
    assert [section for section, _ in fit_drawings(HistoryRows(make_history()))] == [
        "Student against teacher", "Compression", "System",
    ]  # fmt: skip
    assert [section for section, _ in fit_drawings(HistoryRows([line(1, **{"prune/amount": 0.1})]))] == ["Compression"]
    assert fit_drawings(HistoryRows([])) == []


def test_groups_and_ranges_are_a_line_each_and_the_extremes_are_named() -> None:
    found = drawings(make_history())
    kept, high = found["Channels kept of each group"], found["Activations: highest"]
    assert kept.notes == (f"{len(GROUPS)} of them; the highest and the lowest at the end are named.",)
    for drawing in (kept, high):
        assert drawing.svg.count('<path class="pale') == len(GROUPS)
    assert said(high).endswith(f"{GROUPS[-1][0]}.output with {len(GROUPS) + 1:.3g} and stem.output with 2")
    ends = {float(x) for x in re.findall(r'<circle class="dot student" cx="([\d.]+)"', kept.svg)}
    assert ends == {340 - 108}, "what no longer changes holds to the end"


def test_of_very_many_some_are_left_out_and_that_is_said() -> None:
    rows = [line(s, **{f"quantize/low/{n}": float(n * s) for n in range(MAX_NAMED + 50)}) for s in (1, 2)]
    drawing = drawings(rows)["Activations: lowest"]
    assert drawing.svg.count("<circle") == MAX_NAMED
    assert drawing.notes[0].startswith(f"{MAX_NAMED + 50} of them, {MAX_NAMED} drawn; ")
    assert f"{MAX_NAMED + 49} with" in said(drawing)


def test_steps_a_second_are_from_one_line_to_the_next() -> None:
    rows = [line(1), line(2), {**line(2), "time": 9.0}, {**line(4), "time": 5.0}]
    drawing = drawings(rows)["Optimizer steps a second"]
    assert said(drawing).endswith("it ends at 2"), "two steps in a second; what validation took is in the next line"
    assert "Optimizer steps a second" not in drawings([line(1), {**line(2), "time": None}])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, True, "x"])
def test_what_is_no_number_is_left_out(value) -> None:
    rows = [line(s, **{"gap/kl": 0.1 * s, "lr": value}) for s in (1, 2)]
    found = drawings([*rows, line(3, **{"gap/kl": value})])
    assert "Learning rate" not in found
    assert said(found["KL divergence in nats"]).endswith("it ends at 0.2")


def test_lines_stay_inside_their_frame_and_axes_tell_their_lines_apart() -> None:
    for drawing in drawings(make_history()).values():
        for path in re.findall(r'<path class="(?:curve|pale)[^"]*" d="M([^"]*)"', drawing.svg):
            points = [tuple(map(float, point.split())) for point in path.split("L")]
            assert all(52 <= x <= 232 and 11.9 <= y <= 156.1 for x, y in points), drawing.name
        marks = re.findall(r'class="tick end" x="[\d.]+" y="[\d.]+">([^<]*)<', drawing.svg)
        assert len(set(marks)) == len(marks) > 0, drawing.name
        assert max(map(len, marks)) <= 8, (drawing.name, marks)
