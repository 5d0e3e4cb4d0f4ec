"""What the plot of sensitivity says and draws, read back from its SVG."""

import json
import math
from xml.etree import ElementTree

import pytest
from finished_run import make_sensitivity

from lighten.delivery.measure.scores import describe_task
from lighten.delivery.report.quant_plots import (
    MAX_SHOWN,
    caption,
    legend,
    outcome,
    ranked,
    read_sensitivity,
    sensitivity_drawings,
)
from lighten.errors import UserError
from lighten.tasks import task_of


def shapes(panels, css):
    """The drawings' elements of one class, in order."""
    found = [e for panel in panels for e in ElementTree.fromstring(panel.svg).iter()]
    return [e for e in found if css in e.get("class", "").split()]


def bars(panels):
    return [(float(e.get("width")), e.get("class").split()[1]) for e in shapes(panels, "bar")]


def with_errors(*errors, **changes):
    layers = [{"name": f"l{i}", "kind": "Linear", "drop": 0.0, "error": e, "kept": None} for i, e in enumerate(errors)]
    return make_sensitivity(0) | {"layers": layers} | changes


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_bars_are_as_long_as_the_logarithm_of_the_error():
    panels = sensitivity_drawings(with_errors(1.0, 0.1, 0.01, 0.001))
    lengths = [length for length, _ in bars(panels)]
    assert lengths[:3] == pytest.approx([lengths[0], lengths[0] * 2 / 3, lengths[0] / 3], abs=0.1)
    assert lengths[3] == 2.0  # of the lowest error, just to be seen
    ticks = [e for e in shapes(panels[:1], "tick") if "mid" in e.get("class")]
    assert [(e.text, float(e.get("x"))) for e in ticks] == [
        ("0.01", pytest.approx(1 + lengths[0] / 3, abs=0.1)),
        ("0.1", pytest.approx(1 + lengths[0] * 2 / 3, abs=0.1)),
        ("1", pytest.approx(1 + lengths[0], abs=0.1)),
    ]


def test_layers_left_out_are_drawn_in_other_colours():
    sensitivity = make_sensitivity(4)
    assert [css for _, css in bars(sensitivity_drawings(sensitivity))] == [
        "prune",
        "quantize",
        "compressed",
        "compressed",
    ]
    assert legend(sensitivity) == [
        ("compressed", "in int8"), ("prune", "left in float32"), ("quantize", "left in float16"),
    ]  # fmt: skip
    assert [e.text for e in shapes(sensitivity_drawings(sensitivity), "mark")] == ["float32", "float16"]
    assert legend(make_sensitivity(4, kept=())) == [("compressed", "in int8")]
    beyond = make_sensitivity(31, kept=())
    beyond["layers"][28]["kept"] = "float32"
    assert legend(beyond) == [("compressed", "in int8")]
    other = make_sensitivity(2, kept=("bfloat16",))
    assert [css for _, css in bars(sensitivity_drawings(other))] == ["prune", "compressed"]
    assert ("prune", "left in bfloat16") in legend(other)


def test_the_most_sensitive_are_drawn_and_the_count_of_the_others_is_told():
    sensitivity = make_sensitivity(31)
    panels = sensitivity_drawings(sensitivity)
    drawn = [e.text for e in shapes(panels, "tick") if e.text.startswith(("layer", "stem"))]
    assert drawn == [layer["name"] for layer in sensitivity["layers"][:MAX_SHOWN]]
    assert "Drawn are 25 of 31 layers; the error of the other 6 is smaller." in caption(sensitivity)
    assert "Drawn" not in caption(make_sensitivity(25))
    assert len(bars(sensitivity_drawings(make_sensitivity(25)))) == 25
    many = make_sensitivity(31, kept=("float32",) * 28)
    assert "is smaller, and 3 of them are left out of int8 too." in caption(many)


def test_pointing_at_a_bar_tells_what_the_layer_alone_costs():
    titles = [e[0].text for e in shapes(sensitivity_drawings(make_sensitivity(2, kept=("float32",))), "bar")]
    assert titles == [
        "stem.0: 0.34, left in float32; alone it makes accuracy drop by 2.10 points",
        "layer1.0.conv1: 0.23; alone it makes accuracy drop by 1.47 points",
    ]
    better = make_sensitivity(1, kept=())
    better["layers"][0]["drop"] = -0.01
    assert shapes(sensitivity_drawings(better), "bar")[0][0].text.endswith("makes accuracy rise by 1.00 points")


@pytest.mark.parametrize(
    "errors", [(0.0,), (0.0, 0.0), (1.0, 0.0), (1e-3,), (0.01, 0.01), (1e3, 1e-300), (7.0, 1e-9), (1.0, 0.1, 1e-5)]
)
def test_any_errors_stay_within_the_drawing(errors):
    panels = sensitivity_drawings(with_errors(*errors))
    for panel in panels:
        root = ElementTree.fromstring(panel.svg)
        _, _, width, height = map(float, root.get("viewBox").split())
        for element in root.iter():
            x, y, length = (float(element.get(key, 0)) for key in ("x", "y", "width"))
            assert 0 <= x <= x + length <= width
            assert 0 <= y <= height
    assert all(length >= 2 for length, _ in bars(panels))


@pytest.mark.parametrize("errors", [(1.0, 1.0), (1e3, 1e-300), (0.3, 1e-9), (0.3, 0.2)])
def test_the_axis_has_a_few_values_and_the_worst_a_long_bar(errors):
    panels = sensitivity_drawings(with_errors(*errors))
    values = shapes(panels[:1], "grid")
    assert 2 <= len(values) <= 5
    assert bars(panels)[0][0] > 100


def test_what_is_no_error_is_not_drawn():
    sensitivity = with_errors(1.0, None, math.inf, math.nan, 0.5)
    del sensitivity["layers"][1]["error"]
    assert [layer["name"] for layer in ranked(sensitivity)] == ["l0", "l4"]
    assert len(bars(sensitivity_drawings(sensitivity))) == 2
    assert sensitivity_drawings(with_errors()) == []


def test_all_drawings_have_the_same_axis():
    panels = sensitivity_drawings(with_errors(*(0.5 * 0.3**i for i in range(9))))
    assert len(panels) == 3
    scales = [[(e.text, e.get("x")) for e in shapes([panel], "tick") if "e" in e.text or "mid" in e.get("class")]
              for panel in panels]  # fmt: skip
    assert [tick for tick in scales[0] if tick in scales[2]] == [tick for tick in scales[1] if tick in scales[2]]
    assert len([tick for tick in scales[0] if tick in scales[2]]) >= 2


def test_what_was_made_of_it_is_told():
    assert plain(outcome(make_sensitivity(31))) == (
        "Of 31 layers 2 are left out of int8 (1 in float16, 1 in float32), with which accuracy is predicted to drop by "
        "0.42 points; tolerated: 1.00 points. In float32 it is 91.05 % on the same 512 samples. Finding out took 34 s."
    )
    none = make_sensitivity(3, kept=()) | {"predicted": -0.002}
    assert outcome(none).startswith("Of 3 layers none is left out of int8, with which accuracy is predicted to rise by")
    bare = {"schema": 1, "layers": make_sensitivity(3, kept=("float32",))["layers"]}
    assert outcome(bare) == "Of 3 layers 1 is left out of int8 (1 in float32)."
    found = outcome(make_sensitivity(3) | {"metric": "r2", "baseline": 0.98765}, describe_task(task_of("regression")))
    assert "R² is predicted to drop by 0.42 %; tolerated: 1.00 %. In float32 it is 0.9877 on" in plain(found)


def test_a_file_of_another_schema_is_told(run):
    assert read_sensitivity(run) is None
    (run / "sensitivity.json").write_text(json.dumps(make_sensitivity() | {"schema": 2}))
    with pytest.raises(UserError, match="schema 2, expected 1"):
        read_sensitivity(run)
