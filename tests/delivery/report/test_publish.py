import json
from pathlib import Path

import pytest
from finished_run import write_confusion

from lighten.delivery.measure.scores import read_scores
from lighten.delivery.report.publish import PLAN, figures_of, publish
from lighten.pruning.plan import Plan
from lighten.training.loggers import ending, make_logger
from lighten.training.wandb_log import read_records

TEACHER = "ab" * 32


@pytest.fixture
def delivered(run) -> Path:
    """A finished run that knows what its student was made of, and which class is taken for which."""
    import numpy as np

    path = run / "student" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["fingerprint"] = "cd" * 32
    path.write_text(json.dumps({**config, "made_of": {"teacher": TEACHER}}))
    (run / "student" / "model.safetensors").write_bytes(b"weights")
    (run / "student.onnx").write_bytes(b"graph")
    write_confusion(
        run, config["classes"], {"teacher": np.array([0, 1]), "compressed": np.array([0, 0])}, np.array([0, 1])
    )
    return run


def test_figures_are_named_after_models_and_comparisons(delivered) -> None:
    scores = read_scores(delivered)
    figures = figures_of(scores)
    small = scores["models"]["compressed"]
    assert figures["delivery/compressed/latency_batch_32_ms"] == small["latency_ms"]["batch_32"]["median"]
    assert figures["delivery/teacher/bytes"] == 2_861_402
    assert figures["delivery/retention"] == scores["comparison"]["retention"]
    assert all(isinstance(value, int | float) for value in figures.values())


def test_wandb_gets_figures_tables_and_the_model_with_its_sources(delivered, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = make_logger("wandb", delivered)
    with ending(logger):
        publish(logger, delivered)
    (log,) = delivered.glob("wandb/offline-run-*/*.wandb")
    records = list(read_records(log))
    summary = {u.key: json.loads(u.value_json) for r in records for u in r.summary.update if u.key}
    figures = figures_of(read_scores(delivered))
    assert {name: summary[name] for name in figures} == pytest.approx(figures)
    tables = {
        name: json.loads((log.parent / "files" / summary[name]["path"]).read_text()) for name in ("plan", "confusion")
    }
    plan = Plan.from_json((delivered / "plan.json").read_text())
    assert tables["plan"]["columns"] == list(PLAN)
    assert [row[:5] for row in tables["plan"]["data"]] == [
        [g.name, ", ".join(g.layers), g.width_before, g.width_after, pytest.approx(g.width_after / g.width_before)]
        for g in plan.groups
    ]
    assert tables["confusion"]["columns"] == ["label", "answer", "teacher", "compressed"]
    assert tables["confusion"]["data"] == [
        ["T-shirt/top", "T-shirt/top", 1, 1], ["Trouser", "T-shirt/top", 0, 1], ["Trouser", "Trouser", 1, 0],
    ]  # fmt: skip
    artifacts = {r.artifact.name: r.artifact for r in records if r.WhichOneof("record_type") == "artifact"}
    model, data, teacher = (artifacts[name] for name in ("distil_cnn-student", "fashion_mnist", "distil_cnn-teacher"))
    assert (model.type, data.type, teacher.type) == ("model", "dataset", "model")
    assert (model.use_after_commit, data.use_after_commit, teacher.use_after_commit) == (False, True, True)
    assert {entry.path for entry in model.manifest.contents} == {
        "student.onnx", "student/config.json", "student/model.safetensors",
    }  # fmt: skip
    assert json.loads(teacher.metadata) == {"fingerprint": TEACHER}
    assert json.loads(data.metadata)["fingerprint"] == "cd" * 32
    assert json.loads(model.metadata)["delivery/retention"] == figures["delivery/retention"]


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_other_loggers_get_the_figures_at_the_last_step(delivered, name) -> None:
    publish(make_logger(name, delivered), delivered)
    figures = figures_of(read_scores(delivered))
    last = max(json.loads(line)["step"] for line in (delivered / "history.jsonl").read_text().splitlines()) - 1
    if name == "csv":
        import csv

        (path,) = delivered.rglob("metrics.csv")
        (row,) = csv.DictReader(path.read_text().splitlines())
        assert int(row.pop("step")) == last
        assert {key: float(value) for key, value in row.items()} == pytest.approx(figures)
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(delivered / "tensorboard"))
        events.Reload()
        found = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"]}
        assert {tag: event.value for tag, event in found.items()} == pytest.approx(figures)
        assert {event.step for event in found.values()} == {last}


def test_without_a_logger_or_scores_nothing_is_told(delivered) -> None:
    publish(False, delivered)
    (delivered / "scores.json").unlink()
    publish(make_logger("csv", delivered), delivered)
    assert not list(delivered.rglob("metrics.csv"))
