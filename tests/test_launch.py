"""Recipes from the command line: composed and checked before anything is loaded, each mistake one line."""

import subprocess
import sys
from pathlib import Path

import pytest

import lighten.run
from lighten.launch import compose_all, main, recipe_names
from lighten.recipe import RecipeError, check, load_recipe, to_yaml

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_shipped_recipes_compose_and_say_what_they_are_for(name, tmp_path):
    (recipe,) = compose_all([f"recipe={name}"], RECIPES)
    assert recipe.name == name
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert load_recipe(path) == recipe
    first, second = (RECIPES / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second == f"# python train.py recipe={name}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["recipe=distil_cn"], "did you mean 'distil_cnn'?"),
        ([], "recipe"),
        (["sed=1"], "did you mean 'seed'?"),
        (["+new_key=1"], "new_key"),
        (["+seed=1"], "leave the + away"),
        (["~seed"], "cannot be taken away"),
        (["seed=abc"], "'abc'"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs"),
        (["trainer=3"], "trainer"),
        (["student=resnet21"], "student='resnet21': did you mean 'resnet"),
        (["teacher=resnet"], "teacher='resnet': did you mean 'resnet"),
        (["data=fashion"], "data='fashion': did you mean 'fashion_mnist'?"),
        (["student_options.widht=8"], "did you mean 'width'?"),
        (["batch_size=0"], "batch_size=0: expected a whole number, 1 or more"),
        (["distil.temperature=0"], "distil.temperature=0.0: expected a number above 0"),
        (["distil.soft_weight=1.5"], "at least 0 and at most 1"),
        (["distil.losses={dkd: 1}"], "distil.losses='dkd'"),
        (["compress.prune.amount=1"], "compress.prune.amount=1.0: expected a number above 0 and below 1"),
        (["compress.prune.amount=nan"], "compress.prune.amount=nan"),
        (["compress.prune.score=fpgn"], "did you mean 'fpgm'?"),
        (["compress.prune.end=0.05"], "compress.prune.end=0.05: expected at least compress.prune.begin=0.1"),
        (["compress.quantize.freeze=0.2"], "expected at least compress.quantize.begin="),
        (["compress.quantize.weight_bits=9"], "expected a whole number, 2 to 8"),
        (["delivery.targets=[onx]"], "did you mean 'onnx'?"),
        (["delivery.opset=11"], "18 to 23"),
        (["logger=wandbb"], "did you mean 'wandb'?"),
        (["optimizer.name=sdg"], "did you mean 'sgd'?"),
        (["optimizer.lr=-1"], "optimizer.lr=-1.0: expected a number above 0"),
        (["teacher=null", "compress.prune.amount=null", "compress.quantize.begin=null"], "nothing to do"),
        (["teacher_fit.max_epochs=0"], "teacher_fit.max_epochs=0: expected at least 1"),
        (["id=../x"], "id='../x'"),
        (["runs=${oc.env:HOME}"], "resolvers are not allowed"),
        (["recipe=prune_cnn,smoke"], "add -m"),
        (["=3"], "KEY=VALUE"),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_2(overrides, expected, capsys, monkeypatch):
    monkeypatch.setattr(lighten.run, "run", lambda recipe: pytest.fail("it ran"))
    named = any(text.startswith("recipe=") for text in overrides) or not overrides
    assert main(overrides if named else ["recipe=distil_cnn", *overrides], RECIPES) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("teacher: [", "bad.yaml: cannot be read as YAML"),
        ("- a", "bad.yaml: expected keys and values"),
        ("studnet: mlp", "did you mean 'student'?"),
        ("student: {_target_: os.system}", "student"),
        ("compress: {prune: {amont: 0.5}}", "amount'?"),
        ("student: ${oc.env:HOME}", "resolvers are not allowed"),
        ("batch_size: many", "'many'"),
    ],
)
def test_mistakes_in_recipe_files(text, expected, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        compose_all(["recipe=bad"], tmp_path)
    assert expected in str(caught.value)


def test_several_recipes_and_values_run_in_a_row(monkeypatch):
    seen = []
    monkeypatch.setattr(lighten.run, "run", lambda recipe: seen.append((recipe.name, recipe.seed)))
    assert main(["-m", "recipe=prune_cnn,quantize_cnn", "seed=0,1"], RECIPES) == 0
    assert seen == [("prune_cnn", 0), ("prune_cnn", 1), ("quantize_cnn", 0), ("quantize_cnn", 1)]


def test_overrides_win_over_the_recipe():
    (recipe,) = compose_all(["recipe=distil_cnn", "student_options.width=8", "trainer.max_epochs=3"], RECIPES)
    assert recipe.student_options["width"] == 8
    assert recipe.student_options["stem_stride"] == 2
    assert recipe.trainer.max_epochs == 3


def test_quantization_may_begin_before_pruning_ends():
    (recipe,) = compose_all(["recipe=distil_cnn", "compress.quantize.begin=0.2"], RECIPES)
    assert check(recipe) is recipe


def test_settings_without_effect_warn():
    with pytest.warns(UserWarning, match="distil has no effect"):
        compose_all(["recipe=prune_cnn", "distil.temperature=2"], RECIPES)


def test_the_real_command_has_no_traceback():
    command = [sys.executable, "train.py", "recipe=distil_cnn", "compress.prune.scor=fpgm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "score'?" in done.stderr
