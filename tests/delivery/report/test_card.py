import json

import pytest
import yaml
from finished_run import make_compression, make_gate, make_layers, make_plan, make_scores, write_run

from lighten.delivery.report.card import write_card
from lighten.delivery.report.figures import rows
from lighten.errors import UserError


def card(run):
    text = write_card(run).read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_head_is_what_hubs_read(run):
    head, _ = card(run)
    assert (head["license"], head["library_name"], head["datasets"]) == ("mit", "lighten", ["fashion_mnist"])
    assert "knowledge-distillation" in head["tags"]
    metrics = {m["type"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    scores = json.loads((run / "scores.json").read_text())
    assert metrics == {t: scores["models"]["compressed"][k] for t, k in (("accuracy", "accuracy"), ("f1", "macro_f1"))}


def test_table_is_the_scores(run):
    _, body = card(run)
    scores = json.loads((run / "scores.json").read_text())
    lines = body.splitlines()
    for row in rows(scores):
        cells = [row.label, *(cell.text for cell in row.cells), row.gain.text if row.gain else ""]
        assert "| " + " | ".join(cells) + " |" in lines
    assert "2 of 2,000 test predictions differ" in body
    assert "the worst is class Shirt, Found" in body


def test_it_says_how_the_model_was_made_and_which_files_it_speaks_of(run):
    settings = {"exclude": [], "weight_bits": 8, "ranges": "moving_average"}
    compression = {"schema": 1, "plan": json.loads(make_plan().to_json()), "quantization": settings}
    (run / "student" / "compression.json").write_text(json.dumps(compression))
    head, body = card(run)
    plan = make_plan()
    before, after = (sum(getattr(g, f"width_{when}") for g in plan.groups) for when in ("before", "after"))
    assert f"Pruned: {after} of {before} channels are left" in body
    assert "Quantized while training, through fake-quantized int8: weights in 8 bits" in body
    assert "in floating point" not in body
    assert {"pruning", "quantization"} <= set(head["tags"])
    assert "`student/compression.json`" in body


def test_it_carries_the_hashes_of_what_it_was_made_of(run):
    _, body = card(run)
    assert "- Made of recipe `1ec11ec11ec11ec1`, teacher `7eac7eac7eac7eac`, data `ab12ab12ab12ab12`, packages" in body
    config = json.loads((run / "student" / "config.json").read_text())
    (run / "student" / "config.json").write_text(
        json.dumps(config | {"made_of": config["made_of"] | {"teacher": None}})
    )
    assert "recipe `1ec11ec11ec11ec1`, data `" in card(run)[1]


def test_without_scores_it_says_so(tmp_path):
    head, body = card(write_run(tmp_path / "runs" / "x" / "y", scores=False))
    assert "model-index" not in head
    assert "Not measured yet" in body
    assert head["license"] == "mit"


def test_without_a_student_it_says_what_to_do(run):
    (run / "student" / "config.json").unlink()
    with pytest.raises(UserError, match="make it with `lighten shrink"):
        write_card(run)


def test_it_says_which_layers_stay_in_float(run):
    layers = [*make_layers(), *(row | {"name": f"b{i}_"} for i in range(9) for row in make_layers()[:1])]
    (run / "student" / "compression.json").write_text(json.dumps(make_compression(layers, exclude=["*b*"])))
    _, body = card(run)
    assert "Left out by request: `*b*`. 28 of 38 layers in int8; in floating point: `stem.0`, `b0_`" in body
    assert "`b6_` and 2 more." in body


def test_warnings_stand_before_the_figures(run):
    (run / "scores.json").write_text(json.dumps(make_scores() | {"gate": make_gate(warnings=["larger\nthan", "slow"])}))
    _, body = card(run)
    lines = [line for line in body.splitlines() if line]
    assert lines[1:3] == ["**Warning:** larger than", "**Warning:** slow"]
    assert "23.6×" in lines[3]
    assert "3.3× smaller (402\N{NO-BREAK SPACE}kB → 121\N{NO-BREAK SPACE}kB), 1.8× faster at batch 1" in body


def test_each_runtime_is_a_column(tmp_path):
    _, body = card(write_run(tmp_path / "runs" / "x" / "y", quantized=True))
    lines = body.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "| | ONNX, `student.onnx` | OpenVINO, `student.xml` | LiteRT, `student.tflite` |" in lines
    assert "| Same answers as ONNX | 100.00 % | 99.95 % | 99.75 % |" in lines
    assert "- ExecuTorch was not measured: pip install 'lighten[executorch]'" in lines
    assert lines[lines.index("|---|---:|---:|---:|") + 1].startswith("| Accuracy | 90.90 %")


def test_of_a_run_in_floating_point_nothing_is_said_of_int8(run):
    _, body = card(run)
    assert not [word for word in ("Warning", "Runtimes", "Quantized", "float32 in") if word in body]
