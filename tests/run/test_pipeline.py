"""One real run of the smoke recipe, and everything that must hold of its folder."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from browser import title_in_browser

import lighten
from lighten.cli.main import main as cli
from lighten.data import build_data
from lighten.errors import RecipeError, UserError
from lighten.pruning.plan import Plan
from lighten.recipe.compose import compose_all
from lighten.run.pipeline import run

RECIPES = Path(__file__).parents[2] / "recipes"
MODEL = {"accuracy", "macro_f1", "parameters", "macs", "bytes", "runtime", "threads", "latency_ms"}
COMPARISON = {
    "retention",
    "size_ratio",
    "mac_ratio",
    "parameter_ratio",
    "speedup_batch_1",
    "speedup_batch_32",
    "likeness",
    "agreement",
    "logit_error",
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
    assert scores["schema"] == 2
    assert scores["recipe"] == "smoke"
    assert (scores["task"]["name"], scores["task"]["metric"]) == ("classification", "accuracy")
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


@pytest.mark.slow
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
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" …")]  # its progress
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


def test_a_model_that_no_registry_builds_comes_back_given_an_instance(tmp_path):
    layer = torch.nn.Linear(2, 2)
    lighten.save(layer, tmp_path / "x")
    with pytest.raises(UserError, match="model="):
        lighten.load(tmp_path / "x")
    assert torch.equal(lighten.load(tmp_path / "x", model=torch.nn.Linear(2, 2)).weight, layer.weight)


TINY_BERT = (
    "{model_type: bert, vocab_size: 30522, hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32, max_position_embeddings: 64}"
)
SMALL = {"prune_mlp": "{hidden: [24, 16]}", "prune_bert": f"{{path: null, config: {TINY_BERT}}}"}


@pytest.mark.parametrize("name", ["prune_mlp", pytest.param("prune_bert", marks=pytest.mark.slow)])
def test_dense_networks_and_transformers_come_out_narrower(name, tmp_path):
    options = [f"student_options={SMALL[name]}"]
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
        assert small.bert.embeddings.word_embeddings.embedding_dim == 24
        assert [pair for name, pair in widths.items() if name.endswith("embeddings")] == [[24, 24]] * 3


@pytest.mark.slow
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
@pytest.mark.parametrize("mode", ["dynamic", *(pytest.param(m, marks=pytest.mark.slow) for m in ("static", "float16"))])
def test_a_trained_student_is_quantized_in_every_mode(mode, tmp_path):
    words = [*LIMITS, f"compress.quantize.mode={mode}", "delivery.precision=int8"]
    folder = smoke(tmp_path, *words, name="quantize_static")
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


RUNTIMES = {"onnx": "onnx", "openvino": "xml", "litert": "tflite", "executorch": "pte", "pt2": "pt2"}


@pytest.mark.parametrize("targets", [["onnx", "pt2"], pytest.param([*RUNTIMES], marks=pytest.mark.slow)], ids=len)
def test_every_runtime_gets_its_file_and_is_compared_and_verified(targets, tmp_path, capsys):
    drop = ["compress.quantize.max_drop=0.0005", "compress.quantize.weight_bits=2"]
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
    told = capsys.readouterr().out
    assert "\nexport student_float32.onnx (about " in told
    assert "\nmeasure latency, models in turn (about " in told
    assert "\x1b" not in told
    assert cli(["verify", str(folder)]) == 0
    checks = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in (f"student.{RUNTIMES[target]}" for target in targets[1:]):
        assert [check[1:4] for check in checks if name in check] == [
            ["SHA-256", "of", name], ["bytes", "of", name], ["accuracy", "of", name], ["macro_f1", "of", name],
            ["agreement", "of", name], ["kl", "of", name], ["flips", "of", name], ["answers", "of", name],
        ]  # fmt: skip


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
    script = "document.title = document.documentElement.scrollWidth + '/' + innerWidth"
    shown = title_in_browser((folder / "report.html").read_text(), width, tmp_path, script)
    needed, given = map(int, shown.split("/"))
    assert given == width
    assert needed <= width


def test_each_step_again_in_another_process_gives_the_same_bytes(folder, copied):
    made = [copied / name for name in ("plan.json", "student", "student.onnx", "student_float32.onnx", "teacher.onnx")]
    made += [copied / "dense.onnx", copied / "report.html"]
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    script = (
        "import sys; from lighten.cli.main import main; sys.exit(any(main([s, sys.argv[1]]) for s in sys.argv[2:]))"
    )
    steps = ["shrink", "export", "card", "report"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, copied, *steps], env=environment, timeout=300, check=True)
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert len(files) == sum(path.is_file() for path in folder.rglob("*"))
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(copied)).read_bytes(), path
