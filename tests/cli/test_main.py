"""The console script: help, wrong calls, and that each step is reached. Steps on a real run: tests/test_run.py."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from finished_run import write_run
from train_py import train_py as launch

from lighten import build_data, build_model, load, save
from lighten.cli.main import COMMANDS as STEPS
from lighten.cli.main import main, parser
from lighten.delivery.export.targets import export_run
from lighten.delivery.folders.provenance import INPUTS
from lighten.delivery.measure.latency import interleaved_latency
from lighten.training.signals import SIGNALS, hold
from lighten.utils.compression import record_of

ROOT = Path(__file__).parents[2]
OF_A_RUN = ("shrink", "export", "measure", "card", "report", "verify")


CALLS = {
    "train": ["recipe=none"], "plan": ["recipe=none"], "recipes": [], "doctor": [], "completion": ["bash"],
    "compare": ["a", "b"], "quantize": ["none"], "compress": ["none"],
    "init": [os.devnull], "predict": ["none", "x.png"], "push": ["none", "me/x"], "dashboard": ["--entity", "me"],
}  # fmt: skip
"""Arguments that each step takes; all others take a run folder."""


@pytest.mark.parametrize("step", [None, *STEPS])
def test_help_fits_a_screen_and_shows_an_example_and_the_exit_codes(capsys, monkeypatch, step):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([step, "--help"] if step else ["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= (24 if step else 40)
    assert max(map(len, lines)) < 80
    shown = "\n".join(lines)
    assert f"\nexample: lighten {step or 'train'} " in shown
    assert "\nexit codes: 0 done, 1 stopped (a line says why), 2 wrong arguments" in shown
    assert ("143 stopped by a signal" in shown) == (step in (None, "train", "compress"))
    assert all(re.search(rf"^    {name} ", shown, re.MULTILINE) for name in (() if step else STEPS))


@pytest.mark.parametrize("step", STEPS)
def test_an_example_is_a_call_that_is_understood(capsys, step):
    with pytest.raises(SystemExit):
        main([step, "--help"])
    (example,) = re.findall(r"^example: lighten (.*)", capsys.readouterr().out, re.MULTILINE)
    words = example.partition(" >")[0].split()
    assert parser().parse_args(words).step == step


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["quantize", "--help"]], ids=str)
def test_help_and_recipes_are_shown_without_torch(words):
    code = (
        "import sys; from lighten.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'lightning') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("step", STEPS)
def test_every_step_ends_with_two_on_wrong_arguments(capsys, monkeypatch, step):
    monkeypatch.chdir(ROOT)
    given = [step, *CALLS.get(step, ["none"]), "--fast"]
    if step in ("train", "plan"):
        assert main(given) == 2
    else:
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2
    assert "--fast" in capsys.readouterr().err


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("doctor", "completion", "recipes")])
def test_every_step_ends_in_one_line_where_it_cannot_go_on(capsys, monkeypatch, tmp_path, step):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    expected = 2 if step in ("train", "plan") else 1
    assert main([step, *CALLS.get(step, ["none"])]) == expected
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"error: .+\n", shown.err)


@pytest.mark.parametrize("argv", [[], ["expotr", "x"], ["export"], ["export", "a", "b"]], ids=str)
def test_wrong_calls_end_with_two(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "lighten" in capsys.readouterr().err


@pytest.mark.parametrize("step", OF_A_RUN)
def test_a_folder_that_is_no_run_gives_one_line(capsys, tmp_path, step):
    assert main([step, str(tmp_path / "none")]) == 1
    assert main([step, str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no such folder" in lines[0]
    assert "not a run folder" in lines[1]


@pytest.mark.parametrize("step", ["shrink", "export", "measure"])
def test_a_run_that_lacks_what_a_step_needs_gives_one_line(capsys, tmp_path, step):
    run = write_run(tmp_path / "runs" / "x" / "y")
    assert main([step, str(run)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" …")]  # its progress
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with two model folders that were never trained, and what is needed to export and measure them."""
    run = tmp_path_factory.mktemp("runs") / "tiny" / "one"
    torch.manual_seed(0)
    options = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": 2, "blocks": 1}
    config = {
        "data": {"name": "fashion_mnist", "options": {}}, "classes": list("abcdefghij"), "mean": [0.286],
        "std": [0.353], "made_of": dict.fromkeys(INPUTS) | {"data": build_data("fashion_mnist").fingerprint},
    }  # fmt: skip
    for role, width in (("dense", 8), ("student", 4)):
        save(build_model("resnet20", width=width, **options).eval(), run / role, **config)
    (run / "fit.json").write_text(json.dumps({"schema": 1, "targets": ["onnx"], "quantization": None}))
    export_run(run)
    return run


@pytest.fixture
def quick(monkeypatch):
    """No time for latencies: that they are there is enough."""
    short = partial(interleaved_latency, seconds=0.01, min_rounds=2)
    monkeypatch.setattr("lighten.delivery.measure.measure.interleaved_latency", short)


def test_json_is_alone_on_standard_output_and_progress_is_plain(capsys, quick, finished, tmp_path):
    finished = shutil.copytree(finished, tmp_path / "tiny" / "one")
    assert main(["export", str(finished), "--json"]) == 0
    made, err = json_of(capsys)
    assert err.splitlines()[0] == "export dense.onnx …"
    assert re.fullmatch(r"export student\.onnx \(about \d+ s left\) …", err.splitlines()[1])
    assert made["run"] == str(finished)
    for entry in made["files"]:
        content = (finished / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert [entry["file"] for entry in made["files"]] == ["dense.onnx", "student.onnx"]

    assert main(["measure", str(finished), "--json"]) == 0
    scores, err = json_of(capsys)
    assert scores == json.loads((finished / "scores.json").read_text())
    assert [re.sub(r"( \(about \d+ s left\))? …$", "", line) for line in err.splitlines()] == [
        "measure test data", "measure answers on the test split", "measure latency, models in turn",
    ]  # fmt: skip

    assert main(["verify", str(finished), "--json"]) == 0
    found, _ = json_of(capsys)
    assert found["good"] is True
    assert set(found["checks"][0]) == {"name", "claimed", "found", "good", "note"}
    with (finished / "student.onnx").open("ab") as file:
        file.write(b"\0")
    assert main(["verify", str(finished), "--json"]) == 1
    found, err = json_of(capsys)
    assert found["good"] is False
    assert "SHA-256 of student.onnx" in [check["name"] for check in found["checks"] if not check["good"]]
    assert err.splitlines()[-1].startswith("error: ")


def test_without_json_the_files_are_listed(capsys, monkeypatch, finished):
    made = [finished / "dense.onnx", finished / "student.onnx"]
    monkeypatch.setattr(
        "lighten.delivery.export.targets.export_run", lambda run, on_progress: on_progress("something", 0.0) or made
    )
    assert main(["export", str(finished)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"{path} ({path.stat().st_size:,} bytes)" for path in made]
    assert shown.err == "export something …\n"


TALKERS = {
    "export": "lighten.delivery.export.targets.export_run", "measure": "lighten.delivery.measure.measure.measure_run",
    "verify": "lighten.delivery.verify.verify_run", "doctor": "lighten.cli.doctor.examine",
    "plan": "lighten.cli.plan.plan_json",
}  # fmt: skip


@pytest.mark.parametrize("step", TALKERS)
def test_what_talks_in_the_middle_of_a_step_is_not_in_its_json(capsys, monkeypatch, finished, step):
    def talk(*args, **kwargs):
        print("noise")
        return []

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(TALKERS[step], talk)
    monkeypatch.setattr("lighten.delivery.folders.run.read_json", lambda path, made_by: {})
    given = {"doctor": [], "plan": ["recipe=smoke"]}.get(step, [str(finished)])
    assert main([step, *given, "--json"]) == 0
    _, err = json_of(capsys)
    assert err == "noise\n"


def json_of(capsys):
    """Return the JSON on standard output and the text on standard error, without any control character."""
    shown = capsys.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown.out + shown.err)
    return json.loads(shown.out), shown.err


def test_a_run_on_data_of_somebodys_own_train_py_says_where_to_measure_it(capsys, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "own" / "one")
    config = json.loads((run / "student" / "config.json").read_text())
    config["data"]["name"] = "mine"
    (run / "student" / "config.json").write_text(json.dumps(config))
    assert main(["measure", str(run)]) == 1
    told = capsys.readouterr().err
    assert (
        f"data 'mine' is not known here; if your own train.py registers it, run `python train.py measure {run}`" in told
    )


OWN = """
import sys
from functools import partial
from pathlib import Path

from lighten import build_data, register_data

@register_data("mine")
def mine(*, batch_size, seed, workers):
    return build_data("fashion_mnist", batch_size=batch_size, seed=seed, workers=workers)

if __name__ == "__main__":
    from lighten.training.signals import hold
    hold()
    import lighten.delivery.measure.measure as m
    m.interleaved_latency = partial(m.interleaved_latency, seconds=0.01, min_rounds=2)
    from lighten.cli.main import main
    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parent / "recipes", default="train"))
"""


def test_that_train_py_does_it(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "own" / "one")
    config = json.loads((run / "student" / "config.json").read_text())
    config["data"]["name"] = "mine"
    (run / "student" / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.py").write_text(OWN)
    command = [sys.executable, str(tmp_path / "train.py"), "measure", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["provenance"]["data"]["name"] == "mine"


def test_train_py_does_all_other_steps_with_the_recipes_beside_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert launch(["recipes", "--json"], ROOT / "recipes") == 0
    rows, _ = json_of(capsys)
    assert [row["name"] for row in rows] == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert launch(["plan", "recipe=smok"], ROOT / "recipes") == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err


def test_a_step_of_train_py_can_be_stopped_by_a_signal():
    hold()
    try:
        assert launch(["measure", "none"], ROOT / "recipes") == 1
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def test_train_py_takes_no_word_that_is_no_step(capsys):
    assert launch(["measrue", "x"], ROOT / "recipes") == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err


def test_recipes_as_json(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["recipes", "--json"]) == 0
    rows, _ = json_of(capsys)
    smoke = next(row for row in rows if row["name"] == "smoke")
    assert set(smoke) == {"name", "for", "command", "file"}
    assert smoke["command"] == "python train.py recipe=smoke"
    assert smoke["file"] == str(Path("recipes") / "smoke.yaml")
    assert [row["name"] for row in rows] == sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml"))


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "lighten.cli", "recipes", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 1


def test_plan_as_json_is_an_array_of_what_each_recipe_does(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = ["distil.losses={soft_labels: 1.0, hint: 1.0}", "compress.prune.amount=0.3,null"]
    assert main(["plan", "--json", "-m", "recipe=distil_cnn", *settings]) == 0, capsys.readouterr().err
    plans, _ = json_of(capsys)
    assert [plan["recipe"] for plan in plans] == ["distil_cnn", "distil_cnn"]
    assert all(set(plan["match"]["hint"][0]) == {"student", "teacher"} for plan in plans)
    assert plans[1]["prune"] is None
    groups = plans[0]["prune"]["groups"]
    assert all(len(group["kept"]) < len(group["scores"]) for group in groups)
    assert all(len(times) == 2 for times in plans[0]["prune"]["milliseconds"].values())
    quantized = [row for row in plans[1]["quantize"] if not row["note"].startswith("floating point")]
    assert quantized
    assert set(quantized[0]) == {"name", "kind", "weight_bits", "input", "output", "note"}


def test_a_plan_that_cannot_be_made_leaves_standard_output_empty(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--json", "recipe=quantize_static", "compress.quantize.mode=float16"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "does not prune" in shown.err


def test_recipes_are_listed_with_what_they_are_for(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml"))
    assert "Pruning alone" in next(line for line in lines if line.startswith("prune_cnn"))


def test_away_from_the_repository_its_recipes_are_there_and_ones_own_come_first(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "smoke.yaml").write_text("# Mine.\n# python train.py recipe=smoke\nstudent: cmn\n")
    assert main(["recipes", "--json"]) == 0
    rows, _ = json_of(capsys)
    assert [row["name"] for row in rows] == names
    assert {row["file"] for row in rows if row["for"] == "Mine."} == {str(Path("recipes") / "smoke.yaml")}
    assert main(["train", "recipe=smoke"]) == 2
    assert "student='cmn': did you mean 'cnn'?" in capsys.readouterr().err


def test_an_installation_that_has_lost_its_recipes_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lighten.recipe.find.shipped", lambda name: tmp_path / name)
    assert main(["recipes"]) == 1
    assert capsys.readouterr() == (
        "",
        "error: lighten's own recipes are not where they were installed; install it again\n",
    )


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"lighten {version('lighten')}\n")


def test_train_is_the_same_door_as_train_py():
    script = Path(sys.executable).with_name("lighten")
    shown = [
        subprocess.run([*command, "recipe=smok"], cwd=ROOT, capture_output=True, text=True, env={**os.environ})
        for command in ([script, "train"], [sys.executable, "train.py"])
    ]
    assert [result.returncode for result in shown] == [2, 2]
    assert shown[0].stderr == shown[1].stderr
    assert "did you mean 'smoke'?" in shown[0].stderr


def test_plan_prints_what_a_recipe_would_prune_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["plan", "recipe=smoke", f"runs={tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Pruning plan: 50.0% of 112 channels" in out
    assert "head: is the network's output" in out
    assert re.search(r"Predicted: [\d.]+ -> [\d.]+ ms a sample", out)
    assert not list(tmp_path.iterdir())


def test_plan_of_quantization_is_a_table_of_what_is_and_what_is_not(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["plan", "recipe=quantize_cnn", "compress.quantize.exclude=[head]"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stage1.0.conv1", "Conv2d", "7", "-", "-", "with", "BatchNorm2d", "and", "ReLU"] in lines
    assert ["stage1.0:add0", "add", "8", "-", "-", "with", "ReLU"] in lines
    assert ["head", "Linear", "-", "-", "-", "floating", "point:", "excluded", "by", "'head'"] in lines
    assert lines[-1] == ["29", "of", "30", "in", "int8"]


def test_plan_shows_which_layers_learn_from_which(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    argv = ["plan", "recipe=distil_cnn", "distil.losses={soft_labels: 1.0, hint: 1.0}", "compress.prune.amount=null"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "hint: student's layer, teacher's", "  stage1.0  stage1.1", "  stage2.0  stage2.1", "  stage3.0  stage3.1",
    ]  # fmt: skip
    assert main([*argv, "distil.layers={stage9: stage1}"]) == 1
    assert "no layer of the student is called 'stage9'" in capsys.readouterr().err


def test_plan_of_a_recipe_that_does_neither_is_told(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    argv = ["plan", "recipe=quantize_static", "compress.quantize.mode=float16"]
    assert main(argv) == 1
    assert "recipe quantize_static does not prune; set compress.prune.amount" in capsys.readouterr().err


def test_a_model_folder_is_quantized_beside_itself(capsys, tmp_path):
    model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=4, blocks=1, stem_stride=2)
    data = {"name": "fashion_mnist", "options": {}}
    save(model.eval(), tmp_path / "dense", data=data, classes=list("abcdefghij"))
    argv = ["quantize", str(tmp_path / "dense"), "--calibration", "64", "--exclude", "head"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "floating point: excluded by 'head'" in out
    assert (tmp_path / "dense-static.onnx").exists()
    small = load(tmp_path / "dense-static")
    assert record_of(small).quantization["calibration"] == {"samples": 64, "split": "validation"}
    assert main(["quantize", str(tmp_path / "dense"), "--mode", "statik"]) == 1
    assert "did you mean 'static'" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
