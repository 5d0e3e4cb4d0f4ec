import os
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished_run import write_run
from train_py import train_py as main

from lighten.cli import train as launch
from lighten.errors import UserError
from lighten.recipe.compose import recipe_names
from lighten.training import peers

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


@pytest.fixture
def ran(monkeypatch):
    """What the story would have been told of, instead of being told."""
    seen = []

    def run(recipe):
        seen.append(recipe)
        return Path(recipe.runs) / recipe.name / f"{recipe.id}-{recipe.seed}"

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    return seen


def test_a_run(ran, capsys):
    assert main(["recipe=smoke", "seed=3"], RECIPES) == 0
    assert [(r.name, r.seed) for r in ran] == [("smoke", 3)]
    assert capsys.readouterr() == ("", "")


def test_a_sweep_by_a_sampler_is_told_from_every_combination(monkeypatch, capsys):
    told = []
    monkeypatch.setattr("lighten.run.sweep.run_sweep", lambda sweep, compose, in_job: told.append((sweep, compose)))
    assert main(["-m", "recipe=smoke", "seed=1,2", "sweep.trials=3"], RECIPES) == 0
    ((sweep, compose),) = told
    assert (sweep.trials, sweep.space) == (3, {"seed": ("1", "2")})
    assert compose(sweep.drawn({"seed": "2"})).seed == 2
    assert main(["recipe=smoke", "seed=1,2", "sweep.trials=3"], RECIPES) == 2
    assert main(["-m", "recipe=smoke", "seed=interval(1,2)"], RECIPES) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: sweep.trials=3: is of a sweep; add -m"
    assert said[1].endswith("or add sweep.trials=N to draw from it")


def test_several_runs_in_a_row(ran):
    assert main(["-m", "recipe=smoke,prune_cnn", "seed=1,2"], RECIPES) == 0
    assert [(r.name, r.seed) for r in ran] == [("smoke", 1), ("smoke", 2), ("prune_cnn", 1), ("prune_cnn", 2)]


def test_a_sweep_compares_its_measured_runs(ran, tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / "smoke" / f"a-{seed}")
    sweep = ["-m", "recipe=smoke", f"runs={tmp_path}", "id=a"]
    assert main([*sweep, "seed=1,3"], RECIPES) == 0  # of the second there are no scores
    assert capsys.readouterr().out == ""
    assert main([*sweep, "seed=1,2,3"], RECIPES) == 0
    page = tmp_path / "smoke" / "compare.html"
    assert "smoke/a-2" in page.read_text()
    out = capsys.readouterr().out
    assert "2 runs, 2 of them on the Pareto front" in out
    assert out.endswith(f"comparison {page}\n")


def test_one_mistake_keeps_all_from_running(ran, capsys):
    assert main(["-m", "recipe=smoke,prune_cn"], RECIPES) == 2
    assert not ran
    assert capsys.readouterr().err.startswith("error: recipe='prune_cn': no such recipe; did you mean 'prune_cnn'?")


def test_each_run_has_an_environment_of_its_own(monkeypatch):
    seen = []

    def run(_):
        seen.append(os.environ.get("LOCAL_RANK"))
        os.environ["LOCAL_RANK"] = "0"
        return Path("none")

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    before = dict(os.environ)
    assert main(["-m", "recipe=smoke", "seed=1,2"], RECIPES) == 0
    assert seen == [None, None]
    assert dict(os.environ) == before


def test_a_process_of_a_strategy_joins_its_own_run_alone(ran, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LIGHTEN_JOB", "1")
    assert main(["-m", "recipe=smoke", "seed=5,6,7"], RECIPES) == 0
    assert [r.seed for r in ran] == [6]


def test_a_process_of_a_strategy_ends_with_the_one_that_has_started_it(ran, monkeypatch):
    bound = []
    monkeypatch.setattr(launch, "die_with_parent", bound.append)
    main(["recipe=smoke"], RECIPES)
    monkeypatch.setenv("LIGHTEN_LAUNCHER", "4321")
    main(["recipe=smoke"], RECIPES)
    assert not bound
    monkeypatch.setenv("LOCAL_RANK", "1")
    main(["recipe=smoke"], RECIPES)
    assert bound == [4321]


def test_processes_of_a_strategy_are_told_who_starts_them(monkeypatch):
    seen = []

    def run(_):
        seen.append(os.environ.get("LIGHTEN_LAUNCHER"))
        return Path()

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    main(["recipe=smoke"], RECIPES)
    assert seen == [str(os.getpid())]


@pytest.mark.parametrize("known", [True, False])
def test_what_became_of_another_process_is_one_line_and_exit_code_1(monkeypatch, capsys, known):
    lost, said = RuntimeError("Connection closed by peer"), []

    def run(_):
        raise lost

    cause_of = {lost: "rank 1 was killed"}.get if known else lambda _: None
    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    monkeypatch.setattr(peers, "cause_of", cause_of)
    monkeypatch.setattr(peers, "mark_reported", lambda: said.append("reported"))
    if known:
        assert main(["recipe=smoke"], RECIPES) == 1
        assert capsys.readouterr().err == "error: rank 1 was killed\n"
    else:
        with pytest.raises(RuntimeError, match="Connection closed"):
            main(["recipe=smoke"], RECIPES)
    assert said == ["reported"]


def test_a_mistake_during_the_run_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def run(_):
        raise UserError("the file\nis missing")

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    assert main(["recipe=smoke"], RECIPES) == 1
    assert capsys.readouterr().err == "error: the file is missing\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def run(_):
        raise KeyError("ours")

    monkeypatch.setitem(sys.modules, "lighten.run.pipeline", SimpleNamespace(run=run))
    with pytest.raises(KeyError, match="ours"):
        main(["recipe=smoke"], RECIPES)


def test_a_setting_without_effect_is_said_once(ran, capsys):
    assert main(["-m", "recipe=prune_cnn", "seed=1,2", "distil.temperature=2"], RECIPES) == 0
    assert capsys.readouterr().err == "warning: distil has no effect, as teacher is null\n"
    assert len(ran) == 2


def test_help_lists_the_recipes(ran, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"], RECIPES)
    assert ended.value.code == 0
    assert f"recipes: {', '.join(recipe_names(RECIPES))}" in " ".join(capsys.readouterr().out.split())
    assert not ran


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["recipe=distl_cnn"], "error: recipe='distl_cnn': no such recipe; did you mean 'distil_cnn'?"),
        (
            ["recipe=smoke", "trainer.max_epoch=3"],
            "error: trainer.max_epoch is no such key; did you mean 'max_epochs'?",
        ),
        (
            ["-m", "recipe=smoke,prune_cnn", "optimizer.lr=0.1,-1"],
            "error: optimizer.lr=-1.0: expected a number above 0",
        ),
    ],
)
def test_train_py_tells_mistakes_in_one_line_of_stderr(argv, says, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_though_lightning_writes_them_its_own_way(monkeypatch, tmp_path) -> None:
    """It sets its own way when it is imported, which is after the command line was read."""
    told = []

    def run(recipe: object) -> Path:
        told.append(warnings.formatwarning(UserWarning("of two\nlines"), UserWarning, "file.py", 1))
        return tmp_path

    monkeypatch.setattr("lighten.run.pipeline.run", run)
    monkeypatch.setattr(warnings, "formatwarning", lambda *_: "Lightning's own\n")
    launch._run_all([object()])
    assert told == ["warning: of two lines\n"]


def test_an_older_train_py_ends_with_one_line_that_says_what_to_change():
    with pytest.raises(SystemExit) as ended:
        import_module("lighten.launch")
    assert re.fullmatch(r"error: [^\n]+", ended.value.code)
    for line in re.findall(r"sys\.exit\(.*\)", ended.value.code):
        assert line in (ROOT / "train.py").read_text()
