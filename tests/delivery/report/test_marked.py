import json
from xml.etree import ElementTree

import pytest
from finished_run import make_scores, write_run

from lighten.delivery.report.marked import WIDE, input_svg, marked_svg
from lighten.delivery.report.page import render

MARKS = [
    {"box": [0.25, 0.5, 0.75, 1.0], "label": "coat & hat", "odds": 0.876},
    {"point": [0.5, 0.25], "label": "left", "odds": None},
]


def test_boxes_and_points_are_where_their_shares_say():
    svg = ElementTree.fromstring(marked_svg("input-3", [64, 32], MARKS, {"left": "#ff0000"}))
    assert svg.get("viewBox") == f"0 0 {WIDE:g} {WIDE / 2:.2f}"
    assert svg.get("aria-label") == "coat & hat 88 %, left"
    assert svg[0].get("href") == "#input-3"
    rect, circle = svg.find(".//rect"), svg.find(".//circle")
    tall = WIDE / 2
    assert [float(rect.get(key)) for key in ("x", "y", "width", "height")] == pytest.approx(
        [WIDE / 4, tall / 2, WIDE / 2, tall / 2], abs=0.01
    )
    assert [float(circle.get(key)) for key in ("cx", "cy")] == pytest.approx([WIDE / 2, tall / 4], abs=0.01)
    assert [group.get("stroke") for group in svg.iter("g")] == ["#ff0000", "#ffffff"]
    assert [title.text for title in svg.iter("title")] == ["left", "coat & hat 88 %"]
    assert ElementTree.fromstring(marked_svg("x", [64, 64], [], {})).get("aria-label") == "nothing"


def test_an_input_is_a_picture_that_others_show_again():
    image = ElementTree.fromstring(input_svg("input-0", "iVBOR", [10, 20]))[0]
    assert (image.get("id"), image.get("href")) == ("input-0", "data:image/png;base64,iVBOR")


def test_text_stays_within_its_picture():
    marks = [{"box": [0.97, 0.0, 1.0, 0.05], "label": "a long name", "odds": 0.5}]
    text = ElementTree.fromstring(marked_svg("x", [64, 64], marks, {})).find("text")
    assert 0 < float(text.get("x")) < WIDE - 9 * 0.5 * len("a long name 50 %")
    assert float(text.get("y")) >= 8


def test_the_report_shows_boxes_of_truth_and_of_each_model(tmp_path):
    run = write_run(tmp_path / "runs" / "x" / "a")
    roles = list(make_scores()["models"])
    rows = [
        {"sample": n, "rank": "worst", "score": 0.0, "size": [64, 64], "input": "iVBOR", "truth": MARKS[:1]}
        | dict.fromkeys(roles, MARKS)
        for n in (7, 4)
    ]
    (run / "pictures.json").write_text(json.dumps({"schema": 1, "classes": ["coat & hat", "left"], "samples": rows}))
    html = render(run)
    assert html.count('href="#input-0"') == html.count('href="#input-1"') == 1 + len(roles)
    assert html.count('id="input-0"') == html.count("data:image/png;base64,iVBOR") / 2 == 1
    assert html.count('class="marked"') == 2 * (2 + len(roles))
    assert "coat &amp; hat 88 %" in html
    assert html.count('class="swatch"') >= 2


def test_pictures_of_masks_stay_pictures(tmp_path):
    run = write_run(tmp_path / "runs" / "x" / "a")
    row = {"sample": 3, "rank": "median", "score": 0.0} | dict.fromkeys(
        ("input", "truth", *make_scores()["models"]), "iVBOR"
    )
    (run / "pictures.json").write_text(json.dumps({"schema": 1, "classes": ["sky"], "samples": [row]}))
    html = render(run)
    assert html.count('src="data:image/png;base64,iVBOR"') == 2 + len(make_scores()["models"])
    assert 'class="marked"' not in html
