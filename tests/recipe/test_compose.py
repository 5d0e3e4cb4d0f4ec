import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighten.errors import RecipeError
from lighten.recipe import find
from lighten.recipe.compose import compose_all, read_recipe, recipe_names
from lighten.recipe.schema import Recipe

SHIPPED = Path(__file__).parents[2] / "recipes"
PLAIN = """\
# For the tests.
# python train.py recipe=plain
student: resnet20
student_options: {width: 4}
compress: {prune: {amount: 0.5, begin: 0.2}}
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A folder of recipes, and none that come with lighten."""
    monkeypatch.setattr(find, "shipped", lambda name: tmp_path / "none")
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "other.yaml").write_text(PLAIN + "seed: 7\n")
    return tmp_path


def test_a_recipe_is_laid_over_the_defaults(recipes):
    (made,) = compose_all(["recipe=other"], recipes)
    assert isinstance(made, Recipe)
    assert (made.name, made.seed, made.student_options) == ("other", 7, {"width": 4})
    assert made.compress.prune.begin == 0.2
    assert made.compress.prune.end == Recipe().compress.prune.end
    assert made.trainer == Recipe().trainer


@pytest.mark.parametrize(
    ("override", "get", "expected"),
    [
        ("seed=3", lambda r: r.seed, 3),
        ("optimizer.lr=1e-3", lambda r: r.optimizer.lr, 1e-3),
        ("optimizer.lr=1", lambda r: r.optimizer.lr, 1.0),
        ("trainer.devices=[0,1]", lambda r: r.trainer.devices, [0, 1]),
        ("trainer.precision=32", lambda r: r.trainer.precision, "32"),
        ("compress.quantize.begin=0.7", lambda r: r.compress.quantize.begin, 0.7),
        ("compress.prune={amount: 0.25}", lambda r: r.compress.prune.amount, 0.25),
        ("compress.prune.exclude=[head,stage1]", lambda r: r.compress.prune.exclude, ["head", "stage1"]),
        ("student_options.width=8", lambda r: r.student_options, {"width": 8}),
        ("student_options.shortcut=pad", lambda r: r.student_options, {"width": 4, "shortcut": "pad"}),
        ("+student_options.shortcut=pad", lambda r: r.student_options, {"width": 4, "shortcut": "pad"}),
        ("student_options={shortcut: pad}", lambda r: r.student_options, {"width": 4, "shortcut": "pad"}),
        ("id='with-quotes'", lambda r: r.id, "with-quotes"),
        ("batch_size=${seed}", lambda r: r.batch_size, 7),
    ],
)
def test_overrides(recipes, override, get, expected):
    (made,) = compose_all(["recipe=other", override], recipes)
    assert get(made) == expected
    assert type(get(made)) is type(expected)


def test_null_takes_away_an_option_that_the_recipe_sets():
    (given,) = compose_all(["recipe=distil_bert"], SHIPPED)
    (taken,) = compose_all(["recipe=distil_bert", "data_options.tokenizer=null"], SHIPPED)
    assert set(given.data_options) - set(taken.data_options) == {"tokenizer"}


def test_multirun_is_every_combination(recipes):
    made = compose_all(["-m", "recipe=plain,other", "seed=1,2"], recipes)
    assert [(r.name, r.seed) for r in made] == [("plain", 1), ("plain", 2), ("other", 1), ("other", 2)]


def test_multirun_knows_ranges(recipes):
    made = compose_all(["recipe=plain", "seed=range(2,5)", "--multirun"], recipes)
    assert [r.seed for r in made] == [2, 3, 4]


ARGUMENTS = [
    ([], "recipe is given 0 times, expected recipe=NAME once. Choices: other, plain"),
    (["recipe=plan"], "recipe='plan': no such recipe; did you mean 'plain'? Choices: other, plain"),
    (["recipe=../plain"], "recipe='../plain': no such recipe; did you mean 'plain'?"),
    (["recipe=plain", "recipe=other"], "recipe is given 2 times"),
    (["recipe=plain,other"], "recipe=plain,other: several values, expected one; add -m"),
    (["-m", "recipe=plain,othr"], "recipe='othr': no such recipe; did you mean 'other'?"),
    (["-m", "recipe=plain", "seed=1,x"], "seed='x': expected a whole number"),
    (["-m", "recipe=glob(*)"], "recipe=glob(*): cannot be enumerated"),
    (["recipe"], "'recipe': cannot be read, expected KEY=VALUE"),
    (["--cfg", "recipe=plain"], "'--cfg': cannot be read, expected -m, -h or KEY=VALUE"),
    (["recipe=plain", "seed=[1"], "'seed=[1': cannot be read, expected KEY=VALUE"),
    (["recipe=plain", "sed=1"], "sed is no such key; did you mean 'seed'?"),
    (["recipe=plain", "+new_key=1"], "new_key is no such key; "),
    (["recipe=plain", "++new_key=1"], "new_key is no such key; "),
    (["recipe=plain", "+seed=1"], "+seed=1: seed is there already; leave the + away"),
    (["recipe=plain", "~seed"], "~seed: keys cannot be taken away"),
    (["recipe=plain", "name=x"], "name is no such key; "),
    (["recipe=plain", "seed@here=1"], "seed@here=1: no key of a recipe"),
    (["recipe=plain", "hydra.run.dir=x"], "hydra is no such key; "),
    (["recipe=plain", "compress.prune.amuont=1"], "compress.prune.amuont is no such key; did you mean 'amount'?"),
    (["recipe=plain", "compress.prune.amount=half"], "compress.prune.amount='half': expected a number or null"),
    (["recipe=plain", "compress.prune.amount=1.4"], "compress.prune.amount=1.4: expected a number above 0"),
    (["recipe=plain", "compress.prune.end=0.1"], "compress.prune.end=0.1: expected at least compress.prune.begin=0.2"),
    (["recipe=plain", "compress=null"], "compress=null: expected keys and values"),
    (["recipe=plain", "runs=${oc.env:HOME}"], "runs=${oc.env:HOME}: resolvers are not allowed"),
    (["recipe=plain", "runs=${runss}"], "runs: Interpolation key 'runss' not found"),
    (["recipe=plain", "student_options._target_=os.system"], "student_options._target_: recipes name what they use"),
]


@pytest.mark.parametrize(("argv", "says"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_mistakes_on_the_command_line(recipes, argv, says):
    with pytest.raises(RecipeError) as caught:
        compose_all(argv, recipes)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


FILES = [
    ("student: [1, 2\n x: y", "bad.yaml: cannot be read as YAML (line 2: expected ',' or ']'"),
    ("seed: 1\nseed: 2", "bad.yaml: cannot be read as YAML (line 2: found duplicate key seed)"),
    ("- a", "bad.yaml: expected keys and values"),
    ("seed: !!python/object/apply:os.system [ls]", "bad.yaml: cannot be read as YAML (line 1: no tags are allowed"),
    ("studnt: resnet20", "bad.yaml: studnt is no such key; did you mean 'student'?"),
    ("name: other", "bad.yaml: name is no such key; "),
    ("seed: many", "bad.yaml: seed='many': expected a whole number"),
    ("compress: 3", "bad.yaml: compress=3: expected keys and values"),
    ("student_options: {_target_: os.system}", "bad.yaml: student_options._target_: recipes name what they use"),
    ("runs: ${oc.env:HOME}", "bad.yaml: runs=${oc.env:HOME}: resolvers are not allowed"),
    ("data_options: {folder: '${seed}${ oc.env:HOME}'}", "bad.yaml: data_options.folder="),
    ("delivery: {targets: ['${oc.env:HOME}']}", "bad.yaml: delivery.targets.0=${oc.env:HOME}: resolvers"),
    ("hydra: {callbacks: {x: {_target_: os.system}}}", "bad.yaml: hydra.callbacks.x._target_: recipes name"),
    ("hydra: {run: {dir: x}}", "bad.yaml: hydra is no such key; "),
    ("defaults: [override /hydra/launcher: basic]", "bad.yaml: defaults is no such key; "),
]


@pytest.mark.parametrize(("text", "says"), FILES, ids=lambda value: value[:40])
def test_mistakes_in_a_file(recipes, text, says):
    (recipes / "bad.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        compose_all(["recipe=bad"], recipes)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_bad_file_does_not_disturb_the_others(recipes):
    (recipes / "bad.yaml").write_text("x: [")
    assert compose_all(["recipe=plain"], recipes)[0].name == "plain"
    assert recipe_names(recipes) == ["bad", "other", "plain"]


def test_a_file_that_is_not_text(recipes):
    (recipes / "bad.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(RecipeError, match=r"bad\.yaml: cannot be read as YAML"):
        read_recipe("bad", recipes)


def test_nothing_is_written(recipes, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    compose_all(["-m", "recipe=plain,other"], recipes)
    assert not list(here.iterdir())


def test_mistakes_are_found_before_torch_is_imported(recipes):
    """Which keeps the answer to a typo quick."""
    code = (
        "import sys; from pathlib import Path; from lighten.recipe.compose import compose_all\n"
        "try: compose_all(sys.argv[2:], Path(sys.argv[1]))\n"
        "except ValueError: print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    for argv in (["recipe=plan"], ["recipe=plain", "seed=x"], ["recipe=plain", "compress.prune.end=0"]):
        command = [sys.executable, "-c", code, str(recipes), *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
        assert done.stdout.strip() == "[]"
