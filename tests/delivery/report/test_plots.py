"""The large plots, read back from their SVG: every mark lies where its number belongs."""

import math
import re
from html import unescape

import pytest
from finished_run import make_history, make_scores

from lighten.delivery.folders.run import HistoryRows
from lighten.delivery.report.figures import amount, milliseconds, percent
from lighten.delivery.report.line_chart import Phase
from lighten.delivery.report.plots import (
    compression_plot,
    loss_plot,
    parts_plot,
    phases,
    quality_plot,
    tradeoff_plot,
)


def history(**metrics):
    """Ten rows, at a tenth of the fit each; ``None`` is not logged."""
    rows = [{"step": i + 1, "progress": (i + 1) / 10, "time": 1.0} for i in range(10)]
    for name, values in metrics.items():
        for row, value in zip(rows, values, strict=True):
            row |= {} if value is None else {name.replace("__", "/"): value}
    return HistoryRows(rows)


def said(svg):
    return unescape(re.search('aria-label="([^"]*)"', svg)[1]).replace("\N{NO-BREAK SPACE}", " ")


def marks(svg, tag, css):
    """Return the attributes of each element of a class, numbers as numbers."""
    found = re.findall(f'<{tag} class="{css}" ([^>]*?)/?>', svg)
    return [{k: float(v) for k, v in re.findall(r'(\w+)="(-?[\d.]+)"', each)} for each in found]


def test_phases_are_when_something_is_on():
    found = phases(history(
        prune__sparsity=[0, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4],
        quantize__enabled=[0] * 6 + [1] * 4,
        quantize__frozen=[0] * 8 + [1] * 2,
    ))  # fmt: skip
    assert found == [
        Phase("pruning", "prune", 0.2, 0.4),
        Phase("int8", "quantize", 0.7, 1.0),
        Phase("ranges fixed", "freeze", 0.9, 1.0),
    ]
    assert phases(history(prune__sparsity=[0] * 10, quantize__enabled=[0] * 10)) == []
    assert phases(history()) == []


def test_accuracy_and_loss_end_where_the_history_does():
    rows = make_history()
    last, metrics = rows[-1], HistoryRows(rows)
    assert said(quality_plot(metrics)) == (
        f"Accuracy over the fit. Teacher ends at {100 * last['teacher/accuracy']:.1f} %; "
        f"Student ends at {100 * last['student/accuracy']:.1f} %"
    )
    assert said(loss_plot(metrics)) == (
        f"Training loss. Total ends at {last['train/loss']:.2f}; Soft labels ends at {last['distil/soft_labels']:.2f}; "
        f"Hard labels ends at {last['distil/cross_entropy']:.2f}"
    )
    for svg in (quality_plot(metrics), loss_plot(metrics)):
        assert [len(marks(svg, "rect", f"band {css}")) for css in ("prune", "quantize", "freeze")] == [1, 1, 1]


def test_a_band_lies_where_its_phase_does():
    svg = loss_plot(history(train__loss=[1.0] * 10, quantize__enabled=[0] * 6 + [1] * 4))
    (band,) = marks(svg, "rect", "band quantize")
    left, right = 50, 480 - 92
    assert band["x"] == pytest.approx(left + 0.7 * (right - left), abs=0.05)
    assert band["width"] == pytest.approx(0.3 * (right - left), abs=0.05)


def test_losses_begin_at_zero_and_early_spikes_are_left_out():
    svg = loss_plot(history(train__loss=[9.0] + [2.0, 1.5] + [1.0] * 7))
    (dot,) = marks(svg, "circle", "dot total")
    top, bottom = 26, 280 - 36
    assert dot["cy"] == pytest.approx(bottom - 1.0 / (9.0 * 1.08) * (bottom - top), abs=0.05), "a tenth is late enough"
    rows = history(train__loss=[2.0] * 10).rows
    svg = loss_plot(HistoryRows([{"step": 0, "progress": 0.05, "time": 0.0, "train/loss": 50.0}, *rows]))
    (dot,) = marks(svg, "circle", "dot total")
    assert dot["cy"] == pytest.approx(bottom - 2.0 / (2.0 * 1.08) * (bottom - top), abs=0.05)


def test_what_was_not_logged_has_no_plot():
    nothing = history()
    assert quality_plot(nothing) is loss_plot(nothing) is compression_plot(nothing) is None
    alone = quality_plot(history(student__accuracy=[None] * 9 + [0.5]))
    assert said(alone) == "Accuracy over the fit. Student ends at 50.0 %"
    assert compression_plot(history(quantize__enabled=[0] * 10)) is None
    assert compression_plot(history(prune__amount=[0.1] * 10)) is None


def test_compression_has_a_strip_for_each_phase_of_int8():
    svg = compression_plot(history(
        prune__sparsity=[0, 0.1] + [0.25] * 8, prune__amount=[0, 0.1] + [0.25] * 8,
        quantize__enabled=[0] * 5 + [1] * 5, quantize__frozen=[0] * 7 + [1] * 3,
    ))  # fmt: skip
    assert said(svg) == (
        "Pruning and quantization along the fit. Sparsity ends at 25 %. int8 from 60 % of the fit on; "
        "ranges fixed from 80 % of the fit on"
    )
    assert "25\N{NO-BREAK SPACE}% of the channels removed" in svg
    left, right = 50, 480 - 22
    for css, begin in (("quantize", 0.6), ("freeze", 0.8)):
        (strip,) = marks(svg, "rect", f"strip {css}")
        assert strip["x"] == pytest.approx(left + begin * (right - left), abs=0.05)
        assert strip["x"] + strip["width"] == pytest.approx(right, abs=0.1)
    tracks = marks(svg, "rect", "track")
    assert tracks[1]["y"] - tracks[0]["y"] == 24
    without = compression_plot(history(quantize__enabled=[0] * 5 + [1] * 5))
    assert said(without) == "Pruning and quantization along the fit. int8 from 60 % of the fit on"
    assert "removed" not in without


@pytest.mark.parametrize("teacher", [True, False])
def test_discs_lie_at_latency_and_accuracy_and_their_areas_are_the_sizes(teacher):
    scores = make_scores(teacher=teacher)
    models = {role: model for role, model in scores["models"].items() if model}
    svg = tradeoff_plot(scores)
    discs = {role: marks(svg, "circle", f"disc {role}")[0] for role in models}
    slow = {role: math.log(model["latency_ms"]["batch_1"]["median"]) for role, model in models.items()}
    low, high = min(slow.values()) - math.log(2.2), max(slow.values()) + math.log(2.2)
    biggest = max(model["bytes"] for model in models.values())
    for role, model in models.items():
        assert discs[role]["cx"] == pytest.approx(56 + (slow[role] - low) / (high - low) * (480 - 16 - 56), abs=0.05)
        assert discs[role]["r"] ** 2 == pytest.approx(34**2 * model["bytes"] / biggest, rel=0.01)
    good = [models[role]["accuracy"] for role in sorted(models, key=lambda role: discs[role]["cy"])]
    assert good == sorted(good, reverse=True)
    assert said(svg).split(". ", 1)[1] == "; ".join(
        f"{role.title()} {percent(m['accuracy'])} at {milliseconds(m['latency_ms']['batch_1']['median'])} "
        f"and {amount(m['bytes'], 'B')}" for role, m in models.items()
    ).replace("\N{NO-BREAK SPACE}", " ")  # fmt: skip
    first = "teacher" if teacher else "student"
    ends = re.search('class="guide" d="M([^"]*)"', svg)[1]
    assert [float(x) for x in re.findall(r"[\d.]+", ends)] == [
        discs[role][axis] for role in (first, "compressed") for axis in ("cx", "cy")
    ]


def recalls(names, reference, compressed, who):
    parts = {"kind": "class", "metric": "recall", "label": "Found", "format": "percent", "lower_is_better": False}
    return {**parts, "names": names, "values": {who: reference, "compressed": compressed}}


def test_shares_found_of_each_class_lie_on_one_scale():
    svg = parts_plot(
        recalls(["a", "b", "a class of a long name"], [0.9, 0.6, 1.0], [0.8, 0.5, 0.7], "teacher"), "teacher"
    )
    rings, dots = marks(svg, "circle", "ring teacher"), marks(svg, "circle", "dot compressed")
    left, right, low = 116, 480 - 22, 0.5 - 0.03
    for found, values in ((rings, [0.9, 0.6, 1.0]), (dots, [0.8, 0.5, 0.7])):
        places = [left + (value - low) / (1 - low) * (right - left) for value in values]
        assert [mark["cx"] for mark in found] == pytest.approx(places, abs=0.05)
        assert [mark["cy"] for mark in found] == [12 + 24 * (i + 0.5) for i in range(3)]
    assert said(svg).startswith("Share found of each class. a 80.0 % (teacher 90.0 %), b 50.0 % (teacher 60.0 %), ")


def test_a_class_that_is_not_in_the_data_has_no_row():
    svg = parts_plot(recalls(["a", "b", "c"], [0.9, None, 0.5], [0.8, 0.5, None], "student"), "student")
    assert said(svg) == "Share found of each class. a 80.0 % (student 90.0 %)"
    assert parts_plot(recalls(["a"], [None], [0.5], "student"), "student") is None
