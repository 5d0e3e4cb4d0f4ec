"""The console script: help, wrong calls, and that each step is reached. Steps on a real run: tests/test_run.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from finished_run import write_run

from lighten import build_model, load, save
from lighten.cli import STEPS, main

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("step", [None, *STEPS])
def test_help_fits_a_screen_and_shows_an_example(capsys, step):
    with pytest.raises(SystemExit) as ended:
        main([step, "--help"] if step else ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    assert f"example: lighten {step} runs/" in shown if step else all(name in shown for name in (*STEPS, "train"))


@pytest.mark.parametrize("argv", [[], ["expotr", "x"], ["export"], ["export", "a", "b"]], ids=str)
def test_wrong_calls_end_with_two(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "lighten" in capsys.readouterr().err


@pytest.mark.parametrize("step", STEPS)
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
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_recipes_are_listed_with_what_they_are_for(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml"))
    assert "Pruning alone" in next(line for line in lines if line.startswith("prune_cnn"))


def test_away_from_recipes_it_says_where_to_go(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 1
    assert main(["train", "recipe=smoke"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("recipes" in line for line in lines)


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
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["plan", "recipe=smoke", f"runs={tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Pruning plan: 50.0% of 112 channels" in out
    assert "head: is the network's output" in out
    assert re.search(r"Predicted: [\d.]+ -> [\d.]+ ms a sample", out)
    assert not list(tmp_path.iterdir())


def test_plan_of_quantization_is_a_table_of_what_is_and_what_is_not(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["plan", "recipe=quantize_cnn", "compress.quantize.exclude=[head]"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stage1.0.conv1", "Conv2d", "7", "-", "-", "with", "BatchNorm2d", "and", "ReLU"] in lines
    assert ["stage1.0:add0", "add", "8", "-", "-", "with", "ReLU"] in lines
    assert ["head", "Linear", "-", "-", "-", "floating", "point:", "excluded", "by", "'head'"] in lines
    assert lines[-1] == ["29", "of", "30", "in", "int8"]


def test_plan_shows_which_layers_learn_from_which(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    argv = ["plan", "recipe=distil_cnn", "distil.losses={soft_labels: 1.0, hint: 1.0}", "compress.prune.amount=null"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "hint: student's layer, teacher's", "  stage1.0  stage1.1", "  stage2.0  stage2.1", "  stage3.0  stage3.1",
    ]  # fmt: skip
    assert main([*argv, "distil.layers={stage9: stage1}"]) == 1
    assert "no layer of the student is called 'stage9'" in capsys.readouterr().err


def test_plan_of_a_recipe_that_does_neither_is_told(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
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
    assert small.lighten_quantization["calibration"] == {"samples": 64, "split": "validation"}
    assert main(["quantize", str(tmp_path / "dense"), "--mode", "statik"]) == 1
    assert "did you mean 'static'" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err
