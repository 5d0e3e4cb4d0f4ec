"""A recipe that searches, against a search that is over at once."""

import contextlib
import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from finished_run import make_scores
from stub_search import StubSearch
from train_py import train_py as train

from lighten import build_data, build_model, save
from lighten.delivery.measure.latency import interleaved_latency
from lighten.delivery.measure.measure import measure_run
from lighten.delivery.verify import verify_run
from lighten.errors import NeedNotMetError, RecipeError
from lighten.recipe.compose import compose_all
from lighten.recipe.files import load_recipe
from lighten.run.pipeline import run
from lighten.run.search import check_needs

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def stub(monkeypatch):
    found = StubSearch()

    def measured(folder, *, on_progress):
        if found.exports:
            return measure_run(folder, on_progress=on_progress)
        return (folder / "scores.json").write_text(json.dumps(make_scores()))

    short = partial(interleaved_latency, seconds=0.01, min_rounds=2)
    monkeypatch.setattr("lighten.delivery.measure.measure.interleaved_latency", short)
    monkeypatch.setattr("lighten.run.search.measure_run", measured)
    monkeypatch.setattr("lighten.search.compress.compress", found)
    return found


@pytest.fixture
def words(tmp_path):
    data = build_data("fashion_mnist")
    model = build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[4]).eval()
    save(model, tmp_path / "model", data={"name": data.name, "options": {}, "fingerprint": data.fingerprint})
    return ["recipe=auto", f"student_checkpoint={tmp_path / 'model'}", f"runs={tmp_path / 'runs'}", "id=one"]


def composed(words):
    (recipe,) = compose_all(words, RECIPES)
    return recipe


def test_a_run_that_searches_has_the_folder_of_every_run_and_is_verified(stub, words, tmp_path):
    stub.exports = True
    folder = run(composed([*words, "max_drop=1%", "target.bytes=50%", "budget=20min"]))
    assert folder == tmp_path / "runs" / "auto" / "one"
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "search.json", "trials", "best", "report.html", "dense", "dense.onnx"} <= names
    assert {"student", "student.onnx", "scores.json"} <= names
    wrong = [check for check in verify_run(folder) if not (check.good or check.note)]
    assert not wrong
    assert "need met, and confirmed" in (folder / "report.html").read_text()
    (call,) = stub.calls
    assert (call["max_drop"], call["target"], call["budget"]) == ("1%", {"bytes": "50%"}, "20min")
    assert (call["folder"], call["seed"]) == (folder, 0)
    assert call["trainer"] == {"gradient_clip_val": 1.0}
    assert not call["model"].training
    assert load_recipe(folder / "recipe.yaml").target == {"bytes": "50%"}


def test_a_need_that_is_not_met_is_code_four_and_no_failure(stub, words, capsys):
    stub.met = False
    with pytest.raises(NeedNotMetError, match="not met; the nearest is trial 4"):
        run(composed(words))
    folder = Path(words[2].partition("=")[2]) / "auto" / "one"
    assert (folder / "student.onnx").exists()
    assert not (folder / "failure.json").exists()
    assert train(words, RECIPES) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("not met; the nearest is trial 4")


def test_of_several_runs_the_others_run_all_the_same(stub, words, capsys):
    stub.met = False
    assert train(["-m", *words, "max_drop=0.01,0.02"], RECIPES) == 4
    assert [call["max_drop"] for call in stub.calls] == [0.01, 0.02]
    capsys.readouterr()


def test_without_a_checkpoint_the_student_is_trained_first(stub, words):
    run(composed([
        words[0], *words[2:], "student=cnn", "student_options={widths: [4]}", "student_fit.max_epochs=1",
        "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.enable_progress_bar=false",
    ]))  # fmt: skip
    (call,) = stub.calls
    assert call["model"].lighten_record.spec["name"] == "cnn"
    assert not call["model"].training


def test_needs_that_make_no_sense_end_before_anything_is_made(words, tmp_path):
    for wrong in ("max_drop=3", "budget=soon", "target.latency=2", "target.bytes=0"):
        with pytest.raises(RecipeError) as caught:
            run(composed([*words, wrong]))
        assert str(caught.value).startswith(wrong.partition("=")[0].partition(".")[0])
    assert not (tmp_path / "runs").exists()


def test_recipes_that_do_not_search_have_no_needs_to_check():
    check_needs(composed(["recipe=smoke"]))


def test_the_shipped_recipe_says_what_its_schema_has(words):
    told = yaml.safe_load((RECIPES / "auto.yaml").read_text())
    assert {"max_drop", "budget"} <= set(told)
    recipe = composed(["recipe=auto"])
    assert (recipe.searches, recipe.max_drop) == (True, 0.01)


def test_wandb_gets_a_run_a_trial(stub, words, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent = []
    monkeypatch.setattr("lighten.run.search.publish_search", sent.append)
    folder = run(composed([*words, "logger=wandb"]))
    assert sent == [folder]
    assert json.loads((folder / "search.json").read_text())["chosen"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_real_search_from_nothing_to_a_verified_file(tmp_path):
    """A small network is trained and compressed; what the run claims holds, and the report has every trial."""
    recipe = composed([
        "recipe=auto", f"runs={tmp_path}", "id=one", "max_drop=5%", "budget=1 epochs", "student_fit.max_epochs=2",
        "student_options={width: 8, stem_stride: 2}", "trainer.enable_progress_bar=false",
    ])  # fmt: skip
    with contextlib.suppress(NeedNotMetError):  # which of both it is depends on the machine's time
        run(recipe)
    folder = tmp_path / "auto" / "one"
    assert not [check for check in verify_run(folder) if not (check.good or check.note)]
    told = json.loads((folder / "search.json").read_text())
    page = (folder / "report.html").read_text()
    assert len(told["trials"]) >= 2
    assert all(f'id="trial-{trial["number"]}"' in page for trial in told["trials"])
