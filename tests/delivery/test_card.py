import json

import pytest
import yaml
from finished_run import make_plan, write_run

from lighten.delivery.card import write_card
from lighten.delivery.figures import rows
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
    assert "the class found least is Shirt" in body


def test_it_says_how_the_model_was_made_and_which_files_it_speaks_of(run):
    settings = {"exclude": [], "weight_bits": 8, "ranges": "moving_average"}
    compression = {"schema": 1, "plan": json.loads(make_plan().to_json()), "quantization": settings}
    (run / "student" / "compression.json").write_text(json.dumps(compression))
    head, body = card(run)
    plan = make_plan()
    before, after = (sum(getattr(g, f"width_{when}") for g in plan.groups) for when in ("before", "after"))
    assert f"Pruned: {after} of {before} channels are left" in body
    assert "Quantized:" in body
    assert {"pruning", "quantization"} <= set(head["tags"])
    assert "`student/compression.json`" in body


def test_without_scores_it_says_so(tmp_path):
    head, body = card(write_run(tmp_path / "runs" / "x" / "y", scores=False))
    assert "model-index" not in head
    assert "Not measured yet" in body
    assert head["license"] == "mit"


def test_without_a_student_it_says_what_to_do(run):
    (run / "student" / "config.json").unlink()
    with pytest.raises(UserError, match="make it with `lighten shrink"):
        write_card(run)
