"""What ``lighten verify`` finds in a run folder that was tampered with, and in one that was not."""

import json
import re
import shutil
from pathlib import Path

import pytest
from finished_run import schema_1

from lighten.cli.main import main as cli
from lighten.data import build_data
from lighten.delivery.folders import provenance
from lighten.delivery.measure.scores import write_scores
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    (recipe,) = compose_all(["recipe=smoke", f"runs={tmp_path_factory.mktemp('runs')}", "id=one"], RECIPES)
    return run(recipe)


@pytest.fixture(scope="module")
def scores(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def copied(folder, tmp_path):
    """A run folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "smoke" / "one"))


def test_a_run_is_verified(folder, capsys):
    assert cli(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    names = {line[6:].split("  ")[0] for line in lines}
    assert {
        "seal of scores.json", "SHA-256 of recipe.yaml", "SHA-256 of teacher/model.safetensors", "SHA-256 of plan.json",
        "SHA-256 of student_float32.onnx", "bytes of student.onnx", "size_ratio", "recipe of recipe.yaml",
        "teacher of teacher/", "packages of student/", "recipe of checkpoints/", "teacher of checkpoints/",
        "data of checkpoints/", "report.html", "student/README.md", "data that were measured on",
        "data that were learned from", "accuracy of student.onnx", "macro_f1 of teacher.onnx",
        "each class of dense.onnx", "MACs of student.onnx", "agreement", "flips",
    } <= names  # fmt: skip


def test_scores_of_the_first_schema_are_verified(copied, scores, capsys):
    write_scores(copied, schema_1(scores))
    assert cli(["verify", str(copied)]) == 0, capsys.readouterr().out


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TAMPERED = {
    "recipe": (lambda run: edit(run / "recipe.yaml", "seed: 0", "seed: 1"), r"SHA-256 of recipe\.yaml"),
    "teacher's weights": (lambda run: flip(run / "teacher" / "model.safetensors"), "SHA-256 of teacher/model"),
    "student's weights": (lambda run: flip(run / "student" / "model.safetensors"), "SHA-256 of student/model"),
    "dense weights": (lambda run: flip(run / "dense" / "model.safetensors"), "SHA-256 of dense/model"),
    "plan": (lambda run: edit(run / "plan.json", "0", "1"), r"SHA-256 of plan\.json"),
    "history": (lambda run: edit(run / "history.jsonl", "1", "2"), r"SHA-256 of history\.jsonl"),
    "settings of the fit": (lambda run: edit(run / "fit.json", "0", "1"), r"SHA-256 of fit\.json"),
    "onnx": (lambda run: flip(run / "student.onnx"), r"SHA-256 of student\.onnx"),
    "float onnx": (lambda run: flip(run / "student_float32.onnx"), r"SHA-256 of student_float32\.onnx"),
    "teacher's onnx": (lambda run: flip(run / "teacher.onnx"), r"SHA-256 of teacher\.onnx"),
    "no onnx": (lambda run: (run / "student.onnx").unlink(), r"SHA-256 of student\.onnx .*no such file"),
    "no plan": (lambda run: (run / "plan.json").unlink(), r"SHA-256 of plan\.json .*no such file"),
    "one more file": (lambda run: (run / "student.tflite").touch(), r"SHA-256 of student\.tflite .*nothing"),
    "report": (lambda run: edit(run / "report.html", "SHA-256", "SHA-512"), r"report\.html"),
    "card": (lambda run: edit(run / "student" / "README.md", "accuracy", "Accuracy"), r"student/README\.md"),
    "checkpoint": (lambda run: flip(max((run / "checkpoints").glob("last-*.ckpt"))), r"last-.*SHA-256"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_found(copied, capsys, what):
    tamper, claim = TAMPERED[what]
    tamper(copied)
    caught(copied, claim, capsys)


LIES = {
    "accuracy": (("models", "compressed", "accuracy"), 0.99, "retention"),
    "ratio": (("comparison", "size_ratio"), 100.0, "size_ratio"),
    "flips": (("comparison", "flips"), 900, "flips"),
    "agreement": (("comparison", "agreement"), 1.0, "agreement"),
    "MACs": (("models", "student", "macs"), 10**9, r"MACs of dense\.onnx"),
    "class": (("parts", "values", "compressed", 0), 0.5, r"each class of student\.onnx"),
    "data": (("provenance", "data", "fingerprint"), "0" * 64, "data that were measured on"),
    "teacher": (("provenance", "made_of", "teacher"), "0" * 64, "teacher of teacher/"),
    "recipe": (("provenance", "made_of", "recipe"), "0" * 64, r"recipe of recipe\.yaml"),
    "bytes": (("models", "compressed", "bytes"), 1, r"bytes of student\.onnx"),
    "latency": (("models", "teacher", "latency_ms", "batch_1", "p90"), 99.0, r"seal of scores\.json"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_lie_in_the_scores_is_found_also_under_a_new_seal(copied, scores, capsys, what):
    key, value, claim = LIES[what]
    lie = json.loads(json.dumps(scores))
    place = lie
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    if what == "latency":  # of no other machine, so that nothing but the seal holds it
        (copied / "scores.json").write_text(json.dumps(lie))
    else:
        write_scores(copied, lie)
    caught(copied, claim, capsys)


def test_other_data_are_found_and_other_packages_noted(folder, capsys, monkeypatch):
    versions = provenance.versions()
    monkeypatch.setattr("lighten.delivery.verify.versions", lambda: versions | {"torch": "1.0"})
    assert cli(["verify", str(folder)]) == 0
    notes = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("ok ")]
    assert notes == [["note", "torch,", when, "with", versions["torch"], "1.0"] for when in ("trained", "measured")]
    data = type(build_data("fashion_mnist"))
    monkeypatch.setattr(data, "fingerprint", property(lambda self: "0" * 64))
    caught(folder, "data that were learned from", capsys)


def caught(run, claim, capsys):
    assert cli(["verify", str(run)]) == 1
    captured = capsys.readouterr()
    assert re.search(rf"^BAD +{claim}", captured.out, re.MULTILINE), captured.out
    assert "claims do not hold" in captured.err
    assert "Traceback" not in captured.err
