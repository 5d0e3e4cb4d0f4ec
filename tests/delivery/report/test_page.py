"""The report against the scores it was made from; how it looks is tested in tests/test_run.py, in a browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from finished_run import (
    make_compression,
    make_gate,
    make_group,
    make_history,
    make_layers,
    make_plan,
    make_scores,
    make_sensitivity,
    make_targets,
    write_confusion,
    write_run,
)

from lighten.delivery.report.figures import amount, figure, milliseconds, percent
from lighten.delivery.report.page import render, write_report
from lighten.delivery.report.panels import SECTIONS
from lighten.errors import UserError


class Page(HTMLParser):
    """Collects tags, the text of the page, and figures by their place in ``scores.json``."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.figures, self._key, self.table, self._cell = [], "", [], None, [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self._key = attributes.get("data-key")
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.table[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ").strip("\n")
        if self._key:
            self.figures.append((self._key, data))
            self._key = None


def test_every_figure_on_the_page_is_the_one_in_the_scores(run):
    scores = json.loads((run / "scores.json").read_text())
    page = Page(write_report(run).read_text())
    assert len(page.figures) > 40
    for key, text in page.figures:
        assert text in (figure(scores, key).text, _inverse(scores, key)), key
    shown = {key for key, _ in page.figures}
    assert {f"comparison.{key}" for key in scores["comparison"] if key != "likeness"} <= shown


def _inverse(scores, key):
    value = figure(scores, key).value
    return f"{1 / value:.1f}×" if value < 1 else None


def test_so_is_every_figure_of_the_runtimes_and_of_int8_against_float(quantized):
    scores = json.loads((quantized / "scores.json").read_text())
    page = Page(render(quantized))
    shown = {key: text for key, text in page.figures if key.startswith(("gate.", "targets."))}
    assert len(shown) == 9 + 3 * 8 + 3  # size and two latencies, before, after, ratio; a column each, flips twice
    shows = {"agreement": percent, "bytes": lambda v: amount(v, "B"), "median": milliseconds}
    for key, text in shown.items():
        show = next((show for end, show in shows.items() if key.endswith(end)), None)
        found = figure(scores, key)
        assert text in ((show(found.value),) if show else (found.text, _inverse(scores, key))), key


def test_it_carries_the_hashes_of_what_it_was_made_of_and_no_name_of_where_it_lies(run, tmp_path):
    assert "Made of recipe 1ec11ec11ec11ec1, teacher 7eac7eac7eac7eac, data ab12ab12ab12ab12, packages" in " ".join(
        Page(render(run)).text.split()
    )
    scores = json.loads((run / "scores.json").read_text())
    scores["provenance"]["run"] = run.name
    (run / "scores.json").write_text(json.dumps(scores))
    page = render(run)
    assert render(run.rename(tmp_path / "moved")) == page


def test_it_fetches_nothing_and_runs_nothing(run):
    page = Page(render(run))
    fetched = [a[k] for _, a in page.tags for k in ("src", "srcset", "href", "xlink:href") if k in a]
    assert [target for target in fetched if not target.startswith(("#", "data:"))] == []
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "url(" not in render(run).replace("url(#", "")


def test_all_plots_are_there_with_words_for_those_who_cannot_see_them(run):
    html = render(run)
    page = Page(html)
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 5 + 20 + 3 + 3 + 12  # large and small along the fit, savings, widths, norms of each group
    assert all(a.get("role") == "img" and (a.get("aria-label") or a.get("aria-labelledby")) for a in drawings)
    for heading in ("Student against teacher", "Pruning and quantization", "Kept and removed", "Size, latency"):
        assert heading in page.text


def test_each_panel_of_the_dashboard_has_its_like(run):
    """By its title where it is drawn over steps, by its figures where it compares models, by its table."""
    rows = [row | {"system/gpu.memoryAllocatedMB": 2048.0} for row in make_history()]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    confuse(run, {"teacher": [0, 1, 2], "student": [0, 1, 1], "compressed": [0, 2, 1]})
    page = Page(render(run))
    shown, words_of = {key for key, _ in page.figures}, page.text
    places = {attributes.get("id") for _, attributes in page.tags}
    large = {"Accuracy": "Student against teacher", "Training loss": "Training loss"}
    large |= {"Int8: on, ranges frozen": "Pruning and quantization"}
    names = dict.fromkeys(re.findall(r"latency_batch_(?:1|32)_ms", " ".join(METRICS)))
    as_scored = {name: f"latency_ms.{name.removeprefix('latency_').removesuffix('_ms')}.median" for name in names}
    for panel in [panel for panels in SECTIONS.values() for panel in panels]:
        if panel.kind in ("lines", "family", "system"):
            assert large.get(panel.title, panel.title) in words_of, panel.title
        elif panel.kind == "table":
            assert {"confusion": "mistakes", "plan": "pruned"}[panel.metrics[0]] in places
        else:
            for metric in panel.metrics:
                *whose, name = metric.split("/")[1:]
                key = ".".join(["models", *whose, as_scored.get(name, name)] if whose else ["comparison", name])
                assert key in shown, metric


METRICS = [metric for panels in SECTIONS.values() for panel in panels for metric in panel.metrics]


def confuse(run, answers):
    predicted = {model: np.array(given) for model, given in answers.items()}
    write_confusion(run, ["shirt", "coat", "<b>bag</b>"], predicted, np.array([0, 1, 2]))


def test_mistakes_are_those_of_the_confusion_table(run):
    assert "mistakes" not in {a.get("id") for _, a in Page(render(run)).tags}
    confuse(run, {"teacher": [0, 1, 2], "student": [0, 1, 1], "compressed": [0, 2, 1]})
    page = Page(render(run))
    assert ["It is", "Answered", "Teacher", "Student", "Compressed"] in page.table
    assert [row for row in page.table if row[0] in ("<b>bag</b>", "coat", "shirt")] == [
        ["<b>bag</b>", "coat", "0", "1", "1"], ["coat", "<b>bag</b>", "0", "0", "1"],
    ]  # fmt: skip
    confuse(run, {"compressed": [0, 1, 2]})
    assert "mistakes" not in {a.get("id") for _, a in Page(render(run)).tags}, "there are none"


@pytest.mark.parametrize(
    ("gone", "steps", "told"),
    [
        (["history.jsonl"], 0, "before the student’s fit"),
        ([], 40, "in the fit, after step 400 of 1200"),
        ([], 120, "while the student was cut"),
    ],
)
def test_a_run_that_failed_says_where_and_of_what(run, gone, steps, told):
    for name in ("scores.json", "student/config.json", *gone):
        (run / name).unlink()
    if steps:
        lines = [json.dumps(row) + "\n" for row in make_history()[:steps]]
        (run / "history.jsonl").write_text("".join(lines) + '{"step": 40')
    killed = Page(render(run))
    assert f"Nothing says that it failed; it was last seen {told}." in killed.text
    (run / "failure.json").write_text(json.dumps({"error": "loss is <b>NaN</b>"}))
    failed = Page(render(run))
    assert f"Failed {told}." in failed.text
    assert "What stopped it: loss is <b>NaN</b>" in failed.text
    assert "Not measured yet" not in failed.text


def test_where_it_failed_is_told_by_the_files_that_are_there(run):
    (run / "scores.json").unlink()
    (run / "failure.json").write_text('{"error": "x"}')
    assert "Failed while its files were exported." in Page(render(run)).text
    (run / "student.onnx").touch()
    assert "Failed while its files were measured." in Page(render(run)).text
    (run / "history.jsonl").unlink()
    (run / "fit.json").touch()
    (run / "student" / "config.json").unlink()
    assert "Failed at the beginning of the fit." in Page(render(run)).text


def test_a_failure_after_the_scores_is_noted(run):
    assert "failed" not in Page(render(run)).text
    (run / "failure.json").write_text('{"error": "no network"}')
    page = Page(render(run))
    assert "The last start of this run failed: no network" in page.text
    assert page.figures
    (run / "failure.json").write_text("{")
    assert "failed" not in Page(render(run)).text, "a broken note is none"


@pytest.mark.parametrize("missing", ["scores.json", "plan.json", "history.jsonl", "recipe.yaml"])
def test_whatever_is_missing_the_page_says_what_it_has(run, missing):
    (run / missing).unlink()
    page = Page(render(run))
    assert "distil_cnn" in page.text
    assert ("no pruning plan" in page.text) == (missing == "plan.json")
    assert ("no history.jsonl" in page.text) == (missing == "history.jsonl")
    assert bool(page.figures) == (missing != "scores.json")


def test_without_a_teacher_it_compares_with_the_dense_student(tmp_path):
    page = Page(render(write_run(tmp_path / "runs" / "prune_cnn" / "x", teacher=False)))
    assert "This run had no teacher" in page.text
    assert not [key for key, _ in page.figures if key.startswith("models.teacher")]


def test_a_cut_history_is_told_and_the_rest_is_drawn(run):
    whole = render(run)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 1210, "train/lo')
    page = Page(render(run))
    assert "cut short" in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == len(
        [tag for tag, _ in Page(whole).tags if tag == "svg"]
    )


def test_names_are_text_not_markup(run):
    scores = make_scores()
    scores["parts"]["names"][0] = "<script>alert(1)</script>"
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "recipe.yaml").write_text("# <img src=x onerror=alert(1)>\n")
    html = render(run)
    assert "<script>" not in html
    assert "<img" not in html


def with_plan(run, plan):
    (run / "plan.json").write_text(plan.to_json())
    return Page(render(run)).text.replace("\N{NO-BREAK SPACE}", " ")


def test_what_pruning_saved_is_told_against_what_was_asked(run):
    plan = replace(make_plan(amount=0.6, target="parameters"), saved={"macs": 0.55, "parameters": 0.602})
    text = with_plan(run, plan)
    assert "Asked for: 60.0 % of the parameters. Gone: 42.4 % of the channels, 55.0 % of the MACs, 60.2 %" in text
    assert "of the full strength" not in text
    assert "made at 25 % of the full strength" in with_plan(run, make_plan(strength=0.25))


def test_curves_are_shown_only_where_there_are_some(run):
    assert "Sensitivity" not in Page(render(run)).text
    text = with_plan(run, make_plan([make_group("stem", 16, 8, score="magnitude", probed=True)]))
    assert "Sensitivity" in text
    assert "50 % go: 0.69 nats" in text
    assert "magnitude: norms widely spread" in text
    assert "in 1 group, 8 are left" in text


def test_of_many_groups_the_heaviest_are_drawn_and_the_page_says_so(run):
    groups = [replace(make_group(f"g{i}x", 64, 32, probed=True), macs=i / 2000) for i in range(50)]
    (run / "plan.json").write_text(make_plan(groups).to_json())
    html = render(run)
    text = Page(html).text
    assert text.count("Drawn are the 24 of 50 groups that carry the most MACs.") == 3
    assert "Of 3200 channels in 50 groups, 1600 are left" in text
    assert sorted(set(re.findall(r"g\d+x", html))) == [f"g{i}x" for i in range(26, 50)]
    assert len(html) < 300_000
    assert "Drawn are" not in with_plan(run, make_plan(groups[:24]))


def test_names_of_groups_are_text_not_markup(run):
    (run / "plan.json").write_text(make_plan([make_group("<b>.<img src=x>", 8, 4, probed=True)]).to_json())
    html = render(run)
    assert "<img" not in html
    assert "&lt;b&gt;.<wbr>&lt;img src=x&gt;" in html


def test_a_long_history_makes_a_small_page(run):
    rows = make_history(steps=1_000_000, epochs=50)
    assert len(rows) == 100_000
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(render(run)) < 1_000_000


def test_the_same_folder_gives_the_same_page(run):
    assert render(run) == render(run)
    assert not re.search(r"<!-- \d{4}-", render(run))


@pytest.mark.parametrize("file", ["scores.json", "plan.json", "student/compression.json", "sensitivity.json"])
def test_a_broken_file_is_told_in_one_line_and_an_earlier_report_stays(run, file):
    before = write_report(run).read_text()
    (run / file).write_text("{")
    with pytest.raises(UserError, match=f"{file}: cannot be read") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_text() == before


@pytest.fixture
def quantized(tmp_path):
    """A finished run with all that is told of int8."""
    return write_run(tmp_path / "runs" / "distil_cnn" / "q", quantized=True)


def words(page):
    return " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())


def with_compression(run, compression):
    (run / "student" / "compression.json").write_text(json.dumps(compression))
    return render(run)


def test_of_a_run_in_floating_point_nothing_is_said_of_int8(run):
    for compression in (None, {"schema": 1, "plan": None, "quantization": None}):
        page = Page(with_compression(run, compression) if compression else render(run))
        headings = [a.get("id") for tag, a in page.tags if tag == "h2"]
        assert not {"quantized", "runtimes"} & set(headings)
        assert not [a for _, a in page.tags if a.get("class") == "alarm"]
        assert "Warning" not in page.text


@pytest.mark.parametrize("missing", ["student/compression.json", "sensitivity.json", "scores.json"])
def test_what_is_known_of_int8_is_told_without_the_rest(quantized, missing):
    (quantized / missing).unlink()
    page = Page(render(quantized))
    assert "Quantization" in [text.strip() for text in page.text.splitlines()]
    assert ("Quantized while training" in page.text) == (missing != "student/compression.json")
    assert ("Sensitivity to int8" in page.text) == (missing != "sensitivity.json")
    assert ("In each runtime" in page.text) == (missing != "scores.json")
    assert ("Against the same network" in page.text) == (missing != "scores.json")


def test_older_settings_without_mode_and_layers_are_told(run):
    page = Page(with_compression(run, {"plan": None, "quantization": {"exclude": [], "weight_bits": 4}}))
    assert "through fake-quantized int8: weights in 4 bits, a scale a channel; activations in 8 bits" in words(page)
    assert "Layer by layer" not in page.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"mode": "static", "ranges": "mse", "calibration": {"samples": 1512, "split": "train"}},
            "Quantized after training: weights in 8 bits, a scale a channel; activations in 8 bits, ranges by least "
            "squared error (mse), calibrated on 1,512 samples of the train split. Left out by request: stem.*. "
            "28 of 29 layers in int8.",
        ),
        ({"mode": "dynamic"}, "activations in 8 bits, their range taken anew in each call."),
        ({"mode": "float16"}, "weights stored in float16, computed with in float32."),
        ({"mode": "bfloat16"}, "28 of 29 layers in bfloat16."),
        ({"mode": "train"}, "through fake-quantized int8: weights in 8 bits"),
        ({"ranges": "own", "exclude": []}, "ranges by own. 28 of 29 layers in int8."),
    ],
)
def test_the_way_it_was_quantized_is_told(run, settings, told):
    page = Page(with_compression(run, make_compression(**settings)))
    assert told in words(page)


def test_layers_stand_in_a_table(run):
    page = Page(with_compression(run, make_compression()))
    assert ["stem.0", "Conv2d", "float", "–", "–", "excluded by 'stem.*'"] in page.table
    assert ["layer1.0.conv1", "Conv2d", "8", "−5.5 to 11", "0 to 14.3", "with BatchNorm2d and ReLU"] in page.table
    assert ["layer1.0:add0", "add", "8", "−8.5 to 17", "0 to 22.1", "with ReLU"] in page.table
    assert "details" not in [tag for tag, _ in page.tags]
    row = make_layers()[-1] | {"weight_bits": 4, "input": [-1.5e-5, 2.25e10], "output": None}
    page = Page(with_compression(run, make_compression([row])))
    assert ["head", "Linear", "4", "−1.5e−5 to 2.25e10", "–", ""] in page.table
    assert "1 of 1 layer in int8." in words(page)


def test_many_layers_are_folded_away(run):
    layers = [*make_layers(), *make_layers()]
    page = Page(with_compression(run, make_compression(layers[:30])))
    assert "details" not in [tag for tag, _ in page.tags]
    page = Page(with_compression(run, make_compression(layers[:31])))
    assert "details" in [tag for tag, _ in page.tags]
    assert "Layer by layer: 29 of 31 layers in int8" in words(page)


def test_runtimes_stand_side_by_side_and_missing_ones_say_what_to_do(quantized):
    page = Page(render(quantized))
    assert [
        "",
        "ONNXstudent.onnxin onnxruntime",
        "OpenVINOstudent.xmlin openvino",
        "LiteRTstudent.tflitein litert",
    ] in (page.table)
    assert ["Accuracy", "90.90 %", "90.85 %", "90.95 %"] in page.table
    assert ["Same answers as ONNX", "100.00 %", "99.95 %", "99.75 %"] in page.table
    assert ["Differ from PyTorch", "2 of 2,000", "3 of 2,000", "7 of 2,000"] in page.table
    assert "ExecuTorch was not measured: pip install 'lighten[executorch]'" in words(page)


def test_targets_are_shown_in_any_subset(run):
    targets = make_targets()
    del targets["litert"]["latency_ms"], targets["litert"]["flips"]
    for chosen in ({"litert"}, {"litert", "onnx"}, {"executorch"}):
        part = {key: target for key, target in targets.items() if key in chosen}
        (run / "scores.json").write_text(json.dumps(make_scores() | {"targets": part}))
        page = Page(render(run))
        labels = [row[0] for row in page.table if len(row) == 1 + len(part) and "executorch" not in part]
        assert ("Latency, batch 1" in labels) == ("onnx" in chosen)
        assert ("ExecuTorch was not measured" in page.text) == ("executorch" in chosen)
    assert "OpenVINO" not in page.text


def test_a_warning_comes_before_all_else(quantized):
    scores = json.loads((quantized / "scores.json").read_text())
    scores["gate"] = make_gate(warnings=["larger than <b>float32</b>", "slower"])
    (quantized / "scores.json").write_text(json.dumps(scores))
    html = render(quantized)
    assert words(Page(html[html.index("<main>") :])).startswith("Warning: larger than <b>float32</b> Warning: slower")
    assert html.index('class="alarm"') < html.index("<h1>")


def test_int8_is_told_against_float_in_the_same_runtime(quantized):
    page = Page(render(quantized))
    assert (
        "Against the same network in float32 in onnxruntime: 3.3× smaller (402 kB → 121 kB), 1.8× faster at batch 1 "
        "(1.12 ms → 0.621 ms), 1.2× slower at batch 32 (14.1 ms → 16.4 ms)."
    ) in words(page)


def test_a_gate_of_ratios_alone_is_told(run):
    gate = {"size_ratio": 0.5, "warnings": []}
    (run / "scores.json").write_text(json.dumps(make_scores() | {"gate": gate}))
    assert "Against the same network in float32: 2.0× larger." in words(Page(render(run)))


def test_sensitivity_is_drawn_with_a_legend(quantized):
    page = Page(render(quantized))
    assert "Sensitivity to int8 in int8left in float32left in float16" in words(page)
    assert "Of 31 layers 2 are left out of int8" in words(page)
    assert len([a for tag, a in page.tags if tag == "svg" and "Error of the logits" in a["aria-label"]]) == 3


def test_names_of_layers_and_targets_are_text_not_markup(quantized):
    evil = "<img src=x>"
    layers = [row | {"name": evil, "kind": evil, "note": evil} for row in make_layers()]
    (quantized / "student" / "compression.json").write_text(json.dumps(make_compression(layers, exclude=[evil])))
    sensitivity = make_sensitivity(2)
    sensitivity["layers"] = [layer | {"name": evil, "kept": evil} for layer in sensitivity["layers"]]
    (quantized / "sensitivity.json").write_text(json.dumps(sensitivity))
    targets = {"onnx": make_targets()["onnx"] | {"file": evil, "runtime": evil}, evil: {"missing": evil}}
    scores = make_scores() | {"targets": targets, "gate": make_gate(runtime=evil, warnings=[evil])}
    (quantized / "scores.json").write_text(json.dumps(scores))
    html = render(quantized)
    assert "<img" not in html
    assert html.count("&lt;img src=x&gt;") > 3 * len(layers)
