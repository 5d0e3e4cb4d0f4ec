"""A further target is one file, ``toy_target.py``, and one line of the table: all else finds it there."""

import json

import pytest
import torch
from finished_run import make_targets, write_run
from torch import nn
from toy_target import TOY

from lighten import export, measure
from lighten.cli.doctor import examine
from lighten.delivery.folders.hub import files_of
from lighten.delivery.measure.measure import predict
from lighten.delivery.report import card, page
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import RecipeError, UserError
from lighten.recipe.checks import check
from lighten.recipe.schema import Recipe
from lighten.utils.targets import TARGETS, exported_files, with_parts

MODEL, EXAMPLE = nn.Linear(4, 3), torch.zeros(2, 4)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TARGETS, TOY.name, TOY)


@pytest.fixture
def path(toy, tmp_path):
    return export(MODEL, EXAMPLE, tmp_path / "model.toy", target="toy")


@pytest.mark.usefixtures("toy")
def test_settings_that_it_does_not_take_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"target 'toy' writes files that end in \.toy"):
        export(MODEL, EXAMPLE, tmp_path / "model.onnx", target="toy")
    with pytest.raises(UserError, match="opset=20: only target 'onnx' has operator sets, leave it out for 'toy'"):
        export(MODEL, EXAMPLE, tmp_path / "model.toy", target="toy", opset=20)


def test_its_file_runs_as_the_model_does(path):
    x = torch.randn(5, 4)
    with open_runner(path) as runner:
        found = runner.run(runner.feed(((x,), {})))
    torch.testing.assert_close(torch.from_numpy(found), MODEL(x).detach())


def test_it_is_measured_and_counted(path):
    batches = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))]
    scores = measure(path, batches, batch_sizes=(1,))
    assert (scores["runtime"], scores["parameters"], scores["macs"]) == ("toy", 15, 12)
    assert scores["bytes"] == path.stat().st_size
    assert predict(path, batches)[0].shape == (6, 3)


@pytest.mark.usefixtures("toy")
def test_reports_and_cards_call_it_by_its_title(tmp_path):
    run = write_run(tmp_path / "run", quantized=True)
    scores = json.loads((run / "scores.json").read_text())
    scores["targets"]["toy"] = make_targets()["litert"] | {"file": "student.toy", "runtime": "toy"}
    (run / "scores.json").write_text(json.dumps(scores))
    assert "Toy Runtime" in page.render(run)
    assert "Toy Runtime, `student.toy`" in card.render(run)


@pytest.mark.usefixtures("toy")
def test_recipes_take_it_and_refuse_what_it_cannot_hold():
    recipe = Recipe(name="mine", student="resnet20")
    recipe.delivery.targets = ["onnx", "toy"]
    recipe.compress.quantize.begin = 0.5
    check(recipe)
    recipe.compress.quantize.begin, recipe.compress.quantize.mode = None, "dynamic"
    with pytest.raises(RecipeError, match=r"toy does not take compress\.quantize\.mode=dynamic"):
        check(recipe)


@pytest.mark.usefixtures("toy")
def test_doctor_and_hub_know_it(tmp_path):
    assert ("toy", "ok") in {(finding.name, finding.state) for finding in examine() if finding.part == "targets"}
    folder = tmp_path / "student"
    folder.mkdir()
    for file in (folder / "config.json", folder / "model.safetensors", tmp_path / "student.toy"):
        file.touch()
    assert files_of(folder)["model.toy"] == tmp_path / "student.toy"


def test_files_of_all_targets_and_what_belongs_to_them(tmp_path):
    assert exported_files("m") == ["m.onnx", "m.xml", "m.bin", "m.tflite", "m.pte", "m.pt2"]
    assert exported_files("m", besides=("openvino", "onnx")) == ["m.tflite", "m.pte", "m.pt2"]
    assert with_parts(tmp_path / "m.xml") == [tmp_path / "m.xml", tmp_path / "m.bin"]
    assert with_parts(tmp_path / "m.pte") == [tmp_path / "m.pte"]
