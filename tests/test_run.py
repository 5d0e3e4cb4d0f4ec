"""One real run of the smoke recipe, and everything that must hold of its folder."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import lighten
from lighten.cli import main as cli
from lighten.data import build_data
from lighten.errors import UserError
from lighten.launch import compose_all
from lighten.pruning.plan import Plan
from lighten.recipe import RecipeError
from lighten.run import run

RECIPES = Path(__file__).parent.parent / "recipes"
MODEL = {"accuracy", "macro_f1", "parameters", "macs", "bytes", "runtime", "threads", "latency_ms"}
COMPARISON = {
    "retention",
    "size_ratio",
    "mac_ratio",
    "parameter_ratio",
    "speedup_batch_1",
    "speedup_batch_32",
    "agreement",
    "flips",
    "flips_of",
}


def smoke(runs, *overrides, name="smoke"):
    (recipe,) = compose_all([f"recipe={name}", f"runs={runs}", "id=one", *overrides], RECIPES)
    return run(recipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smoke(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def scores(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def copied(folder, tmp_path):
    """A run folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "smoke" / "one"))


def test_folder_holds_what_the_design_says(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "plan.json", "history.jsonl", "checkpoints", "student", "teacher", "dense"} <= names
    assert {"student.onnx", "teacher.onnx", "dense.onnx", "scores.json", "report.html"} <= names
    assert {p.name for p in (folder / "student").iterdir()} == {
        "config.json",
        "model.safetensors",
        "compression.json",
        "README.md",
    }
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) >= 2


def test_scores_are_the_contract(folder, scores):
    assert scores["schema"] == 1
    assert scores["recipe"] == "smoke"
    assert set(scores["models"]) == {"teacher", "student", "compressed"}
    assert all(set(model) == MODEL for model in scores["models"].values())
    assert set(scores["comparison"]) == COMPARISON
    teacher, compressed = scores["models"]["teacher"], scores["models"]["compressed"]
    assert compressed["bytes"] == (folder / "student.onnx").stat().st_size
    assert scores["comparison"]["size_ratio"] == pytest.approx(teacher["bytes"] / compressed["bytes"])
    assert scores["comparison"]["retention"] == pytest.approx(compressed["accuracy"] / teacher["accuracy"])
    medians = [m["latency_ms"]["batch_32"]["median"] for m in (teacher, compressed)]
    assert scores["comparison"]["speedup_batch_32"] == pytest.approx(medians[0] / medians[1])
    assert scores["comparison"]["flips_of"] == 2000
    assert scores["comparison"]["flips"] <= 10


def test_accuracy_is_that_of_the_file_on_the_test_split(folder, scores):
    data = build_data("fashion_mnist")
    data.prepare_data()
    data.setup("test")
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    right = [session.run(None, {"input": x.numpy()})[0].argmax(1) == y.numpy() for x, y in data.test_dataloader()]
    assert scores["models"]["compressed"]["accuracy"] == pytest.approx(np.concatenate(right).mean())


def test_student_is_physically_smaller_by_the_plan(folder, scores):
    plan = Plan.from_json((folder / "plan.json").read_text())
    assert all(group.width_after == group.width_before // 2 for group in plan.groups)
    student, dense = lighten.load(folder / "student"), lighten.load(folder / "dense")
    assert student.conv1.out_channels * 2 == dense.conv1.out_channels
    assert scores["models"]["compressed"]["parameters"] < 0.3 * scores["models"]["student"]["parameters"]


def test_model_folder_loads_in_both_runtimes(folder):
    x = torch.randn(8, 1, 28, 28)
    with torch.no_grad():
        ours = lighten.load(folder / "student")(x).numpy()
    theirs = lighten.load(folder / "student", runtime="onnxruntime")(x)
    assert theirs.shape == ours.shape == (8, 10)
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(ours).mean() + 1e-3
    with pytest.raises(UserError, match="expected 'torch' or 'onnxruntime'"):
        lighten.load(folder / "student", runtime="tensorrt")


def test_history_tells_student_teacher_pruning_and_quantization(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    keys = set().union(*rows)
    assert {"step", "epoch", "progress", "time", "train/loss", "distil/soft_labels", "distil/cross_entropy"} <= keys
    assert {"student/accuracy", "teacher/accuracy", "student/macro_f1", "teacher/macro_f1", "gap/accuracy"} <= keys
    assert {"prune/sparsity", "prune/amount", "quantize/enabled", "quantize/frozen"} <= keys
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)


def test_each_delivery_step_runs_again_alone(copied, capsys):
    before = (copied / "student.onnx").read_bytes()
    for path in ("student.onnx", "teacher.onnx", "dense.onnx", "scores.json", "report.html"):
        (copied / path).unlink()
    shutil.rmtree(copied / "student")
    for step in ("shrink", "export", "measure", "card", "report"):
        assert cli([step, str(copied)]) == 0, capsys.readouterr().err
    assert (copied / "student.onnx").read_bytes() == before
    assert (copied / "report.html").exists()
    assert (copied / "student" / "README.md").exists()


def test_the_same_command_goes_on_and_finds_its_teacher(folder):
    student, reference = (
        (folder / "student.onnx").read_bytes(),
        next((folder.parent.parent / "references").glob("*/*.safetensors")),
    )
    trained = reference.stat().st_mtime_ns
    assert smoke(folder.parent.parent) == folder
    assert (folder / "student.onnx").read_bytes() == student
    assert reference.stat().st_mtime_ns == trained


@pytest.mark.parametrize("damage", ["weights", "config", "checkpoint"])
def test_damaged_files_give_one_line_and_leave_the_rest(copied, capsys, damage):
    step = {"weights": "export", "config": "export", "checkpoint": "shrink"}[damage]
    if damage == "checkpoint":
        for path in (copied / "checkpoints").glob("*.ckpt"):
            path.write_bytes(path.read_bytes()[:-100])
    else:
        path = copied / "student" / {"weights": "model.safetensors", "config": "config.json"}[damage]
        path.write_bytes(path.read_bytes()[:-100])
    scores = (copied / "scores.json").read_bytes()
    if damage == "checkpoint":
        with pytest.warns(UserWarning, match="no good checkpoint is left"):
            assert cli([step, str(copied)]) == 1
    else:
        assert cli([step, str(copied)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert (copied / "scores.json").read_bytes() == scores


def test_a_folder_holds_one_recipe(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"compress.prune.amount=0.25: .* holds a run with compress.prune.amount=0.5"):
        smoke(folder.parent.parent, "compress.prune.amount=0.25")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_plan_is_that_of_the_checkpoint_that_is_cut(copied):
    checkpoints = sorted((copied / "checkpoints").glob("*.ckpt"), key=lambda p: p.name.split("epoch=")[1])
    newest = checkpoints[-1].name.split("epoch=")[1]
    for path in checkpoints:
        if path.name.endswith(newest):
            path.write_bytes(path.read_bytes()[:-100])
    (copied / "plan.json").write_text("of a later state")
    with pytest.warns(UserWarning, match="going back to"):
        assert cli(["shrink", str(copied)]) == 0
    earlier = torch.load(checkpoints[0], weights_only=True)["callbacks"]["Prune{'module': 'student'}"]["plan"]
    assert (copied / "plan.json").read_text() == earlier
    widths = Plan.from_json(earlier).widths
    assert lighten.load(copied / "student").conv1.out_channels == widths["conv1"][1]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compress.prune.exclude=[layer9]", "exclude='layer9' matches no layer"),
        ("compress.quantize.exclude=[layer9]", "exclude='layer9' matches no layer"),
        ("compress.prune.amount=0.99", "would empty"),
        ("student_checkpoint={dense7}", "gives 7 classes, fashion_mnist has 10"),
        ("student_checkpoint={student}", "is compressed already"),
        ("student_checkpoint={nothing}", "no such file"),
    ],
)
def test_what_a_student_does_not_bear_is_told_before_a_teacher_is_trained(folder, tmp_path, override, told):
    model = lighten.build_model("cnn", num_classes=7, input_shape=(1, 28, 28), widths=[8])
    places = {
        "dense7": lighten.save(model, tmp_path / "seven"),
        "student": folder / "student",
        "nothing": tmp_path / "none",
    }
    with pytest.raises(UserError, match=told) as caught:
        smoke(tmp_path, override.format(**places) if "{" in override else override)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "references").exists()


def test_a_student_may_start_from_a_model_folder(tmp_path):
    start = lighten.build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[8, 8])
    made = smoke(tmp_path, f"student_checkpoint={lighten.save(start, tmp_path / 'start')}")
    config = json.loads((made / "student" / "config.json").read_text())
    assert config["model"]["name"] == "cnn"
    assert json.loads((made / "scores.json").read_text())["comparison"]["flips_of"] == 2000


def test_a_teacher_of_another_task_is_refused(folder, tmp_path):
    model = lighten.build_model("cnn", num_classes=7, input_shape=(1, 28, 28), widths=[8])
    lighten.save(model, tmp_path / "teacher")
    with pytest.raises(UserError, match="gives 7 classes, fashion_mnist has 10"):
        smoke(tmp_path, f"teacher_checkpoint={tmp_path / 'teacher'}")


def test_only_registered_models_become_folders(tmp_path):
    with pytest.raises(UserError, match="register its builder"):
        lighten.save(torch.nn.Linear(2, 2), tmp_path / "x")


SMALL = {
    "prune_mlp": {"hidden": [24, 16]},
    "prune_bert": {"width": 24, "layers": 1, "heads": 2, "feed_forward": 32},
}


@pytest.mark.parametrize("name", SMALL)
def test_dense_networks_and_transformers_come_out_narrower(name, tmp_path):
    options = [f"student_options.{key}={value}" for key, value in SMALL[name].items()]
    limits = ["trainer.limit_train_batches=6", "trainer.limit_val_batches=1", "student_fit.max_epochs=1"]
    folder = smoke(tmp_path, *options, *limits, "trainer.max_epochs=1", name=name)
    small, widths = lighten.load(folder / "student"), json.loads((folder / "plan.json").read_text())["widths"]
    assert json.loads((folder / "scores.json").read_text())["comparison"]["flips"] <= 3
    if name == "prune_mlp":
        assert [m.out_features for m in small.modules() if isinstance(m, torch.nn.Linear)] == [12, 8, 10]
    else:
        layer = small.bert.encoder.layer[0]
        assert layer.attention.self.query.out_features == layer.attention.self.value.out_features == 12
        assert (layer.intermediate.dense.out_features, layer.output.dense.in_features) == (16, 16)
        assert widths["embed"] == [24, 24]


@pytest.mark.parametrize("name", ["prune_cnn", "quantize_cnn"])
def test_each_technique_alone_needs_no_teacher(name, tmp_path):
    options = ["student_options={width: 8, blocks: 1, stem_stride: 2}", "student_fit.max_epochs=1"]
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=6", "trainer.limit_val_batches=1"]
    folder = smoke(tmp_path, *options, *limits, name=name)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["models"]["teacher"] is None
    smaller = scores["models"]["compressed"]["bytes"] / scores["models"]["student"]["bytes"]
    assert smaller < 0.6
    assert (folder / "plan.json").exists() == (name == "prune_cnn")


LIMITS = [
    "student_options={width: 8, blocks: 1, stem_stride: 2}", "student_fit.max_epochs=1", "trainer.max_epochs=1",
    "trainer.limit_train_batches=20", "trainer.limit_val_batches=1",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:dynamic quantization of")
@pytest.mark.parametrize("mode", ["static", "dynamic", "float16"])
def test_a_trained_student_is_quantized_in_every_mode(mode, tmp_path):
    folder = smoke(tmp_path, *LIMITS, f"compress.quantize.mode={mode}", name="quantize_static")
    scores = json.loads((folder / "scores.json").read_text())
    compression = json.loads((folder / "student" / "compression.json").read_text())
    assert compression["quantization"]["mode"] == mode
    assert scores["gate"]["size_ratio"] > (1.2 if mode == "float16" else 1.5)
    # a dynamic range is read off floating-point sums, which a runtime takes in another order
    assert scores["comparison"]["flips"] <= (20 if mode == "dynamic" else 6)
    page = (folder / "report.html").read_text()
    if mode == "static":
        assert compression["quantization"]["calibration"] == {"samples": 512, "split": "validation"}
        assert "512 samples" in " ".join(page.split())
        assert sum(row["weight_bits"] == 7 for row in compression["layers"]) == 10
    if mode == "dynamic":
        assert any("dynamically quantized convolutions slowly" in text for text in scores["gate"]["warnings"])
        assert "dynamically quantized convolutions slowly" in page


def test_every_runtime_gets_its_file_and_is_compared(tmp_path):
    targets = ["onnx", "openvino", "litert", "executorch"]
    drop = ["compress.quantize.max_drop=0.0005", "compress.quantize.weight_bits=3"]
    folder = smoke(tmp_path, *LIMITS, *drop, f"delivery.targets=[{','.join(targets)}]", name="quantize_cnn")
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores["targets"]) == targets
    for target, found in scores["targets"].items():
        assert (folder / found["file"]).stat().st_size <= found["bytes"], target
        assert found["flips_of"] == 2000
        assert found["agreement"] > 0.97, target
        assert found["latency_ms"]["batch_1"]["median"] > 0
    ranking = json.loads((folder / "sensitivity.json").read_text())
    kept = [layer["name"] for layer in ranking["layers"] if layer["kept"]]
    assert ranking["layers"] == sorted(ranking["layers"], key=lambda layer: -layer["error"])
    assert kept == [layer["name"] for layer in ranking["layers"][: len(kept)]] != []
    student = lighten.load(folder / "student")
    assert set(student.activation_ranges.left) == set(kept)
    assert "sensitiv" in (folder / "report.html").read_text()


def test_a_target_that_is_not_installed_is_told_before_training(tmp_path, monkeypatch):
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(
        "lighten.delivery.extras.find_spec", lambda name: None if name == "litert_torch" else plain(name)
    )
    with pytest.raises(
        UserError, match=r"'litert' needs litert-torch; install it with: pip install 'lighten\[litert\]'"
    ):
        smoke(tmp_path, *LIMITS, "delivery.targets=[onnx,litert]", name="quantize_cnn")
    assert not (tmp_path / "references").exists()


class References(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "srcset") or (k == "href" and tag == "link")]


def test_report_is_one_file_and_says_what_was_measured(folder, scores):
    page = (folder / "report.html").read_text()
    references = References()
    references.feed(page)
    assert [r for r in references.found if not r.startswith("data:")] == []
    assert f"{100 * scores['models']['compressed']['accuracy']:.2f}" in page
    assert f"{100 * scores['models']['teacher']['accuracy']:.2f}" in page
    assert page.count("<svg") >= 4


@pytest.mark.parametrize("width", [390, 1440])
def test_report_does_not_overflow_in_a_browser(folder, tmp_path, width):
    page = (folder / "report.html").read_text()
    probe = "<script>document.title = 'w' + document.documentElement.scrollWidth + '/' + innerWidth</script></body>"
    frame = tmp_path / "frame.html"
    inner = tmp_path / "report.html"
    inner.write_text(page.replace("</body>", probe))
    # a frame: headless windows are never narrower than 500 pixels
    frame.write_text(
        f"<iframe id=f src=report.html style='width:{width}px;height:2000px;border:0'></iframe>"
        "<script>f.onload = () => document.body.append(f.contentDocument.title)</script>"
    )
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing; install it, as the README says"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += [
        "--disable-background-networking",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path}/chrome",
    ]
    command += ["--window-size=1600,2200", "--virtual-time-budget=3000", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    needed, given = map(int, re.search(r"w(\d+)/(\d+)", shown).groups())
    assert given == width
    assert needed <= width


def test_a_run_is_verified_and_every_lie_found(folder, copied, capsys):
    assert cli(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok ") == len(out.splitlines()) >= 24
    assert "accuracy of student.onnx" in out

    def caught(claim):
        assert cli(["verify", str(copied)]) == 1
        captured = capsys.readouterr()
        assert re.search(rf"^BAD\s+{claim}", captured.out, re.MULTILINE), captured.out
        assert "claims do not hold" in captured.err

    scores = json.loads((copied / "scores.json").read_text())
    for key, value, claim in (
        (("models", "compressed", "accuracy"), 0.99, "retention"),
        (("comparison", "size_ratio"), 100.0, "size_ratio"),
        (("comparison", "flips"), 900, "flips"),
        (("provenance", "data", "fingerprint"), "0" * 64, "fingerprint of the data"),
        (("models", "compressed", "bytes"), 1, r"bytes of student\.onnx"),
    ):
        lie = json.loads(json.dumps(scores))
        place = lie
        for part in key[:-1]:
            place = place[part]
        place[key[-1]] = value
        (copied / "scores.json").write_text(json.dumps(lie))
        caught(claim)
    (copied / "scores.json").write_text(json.dumps(scores))
    content = bytearray((copied / "student.onnx").read_bytes())
    content[-1] ^= 1
    (copied / "student.onnx").write_bytes(content)
    caught(r"SHA-256 of student\.onnx")
    (copied / "student.onnx").unlink()
    caught(r"SHA-256 of student\.onnx .*no such file")
