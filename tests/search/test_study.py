import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from lighten.errors import UserError
from lighten.recipe.sweep import Interval, Sweep
from lighten.search.study import AT_FIRST, JOURNAL, Study

SPACE = {"lr": Interval(0.01, 1.0, log=True), "depth": Interval(1, 5, whole=True), "score": ("fpgm", "l1")}
SRC = str(Path(__file__).parents[2] / "src")


def finish(study, claimed, value):
    study.complete(claimed, [value, 1.0, 1.0], Path(f"run-{claimed.number}"))


def run_all(study, quality=lambda values: values["lr"]):
    seen = []
    while (claimed := study.next()) is not None:
        seen.append(claimed.values)
        finish(study, claimed, quality(claimed.values))
    return seen


def elsewhere(folder, code):
    """Run code in a process of its own, which may end as it likes."""
    head = (
        "import os, pathlib\nfrom lighten.search.study import Study\nfrom lighten.recipe.sweep import *\n"
        f"study = Study(pathlib.Path({str(folder)!r}), Sweep(('recipe=a',), {{'x': Interval(0.0, 1.0)}}, trials=12))\n"
    )
    return subprocess.Popen([sys.executable, "-c", head + code], env={"PYTHONPATH": SRC, "PATH": ""})


SHARED = Sweep(("recipe=a",), {"x": Interval(0.0, 1.0)}, trials=12)


def test_draws_lie_in_the_space_and_a_resumed_sweep_draws_the_same(tmp_path):
    sweep = Sweep(("recipe=a",), SPACE, trials=6, sampler="random")
    drawn = run_all(Study(tmp_path / "one", sweep))
    assert len(drawn) == 6
    for values in drawn:
        assert 0.01 <= values["lr"] <= 1.0
        assert values["depth"] in range(1, 6)
        assert values["score"] in ("fpgm", "l1")
    again = []
    for _ in range(6):  # each by a process that has just begun
        study = Study(tmp_path / "other", sweep)
        claimed = study.next()
        again.append(claimed.values)
        finish(study, claimed, 1.0)
    assert again == drawn
    assert study.next() is None


def test_a_sampler_that_learns_comes_nearer_than_chance(tmp_path):
    def quality(values):
        return -abs(values["x"] - 0.3)

    best = {}
    for sampler in ("tpe", "random"):
        sweep = Sweep(("recipe=a",), {"x": Interval(0.0, 1.0)}, trials=30, sampler=sampler)
        drawn = run_all(Study(tmp_path / sampler, sweep), quality)
        best[sampler] = sorted(abs(values["x"] - 0.3) for values in drawn)[9]
    assert best["tpe"] < best["random"]


def test_a_grid_is_every_combination_once(tmp_path):
    sweep = Sweep(("recipe=a",), {"a": ("1", "2"), "b": ("x", "y", "z")}, trials=6, sampler="grid")
    drawn = run_all(Study(tmp_path, sweep), lambda values: 1.0)
    assert [(v["a"], v["b"]) for v in drawn] == list(itertools.product("12", "xyz"))


def test_a_killed_process_leaves_its_trial_to_the_next(tmp_path):
    assert elsewhere(tmp_path, "study.next(); os.kill(os.getpid(), 9)").wait() == -9
    study = Study(tmp_path, SHARED)
    claimed = study.next()
    assert (claimed.number, claimed.resumed) == (0, True)
    other = study.next()  # the first is held here
    assert (other.number, other.resumed) == (1, False)
    assert claimed.values != other.values


def test_processes_share_the_trials(tmp_path):
    work = "while c := study.next(): study.complete(c, [c.values['x'], 1, 1], pathlib.Path(str(os.getpid())))"
    processes = [elsewhere(tmp_path, work) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    study = Study(tmp_path, SHARED)
    assert study.counts() == {"complete": 12, "pruned": 0, "failed": 0, "running": 0}
    assert study.next() is None
    values = [trial.values[0] for trial in study.study.trials]
    assert study.best() == [values.index(max(values))]


def test_a_trial_that_is_completed_while_another_process_looks_is_not_taken_for_a_dead_one(tmp_path, monkeypatch):
    worker, looking = Study(tmp_path, SHARED), Study(tmp_path, SHARED)
    at_work, claim = worker.next(), looking._claimed

    def completed_before(number):
        if number == at_work.number:
            finish(worker, at_work, 0.5)
        return claim(number)

    monkeypatch.setattr(looking, "_claimed", completed_before)
    found = looking.next()
    assert (found.number, found.resumed) == (1, False)
    finish(looking, found, 0.6)


def test_a_line_that_a_kill_has_cut_short_is_mended(tmp_path):
    study = Study(tmp_path, SHARED)
    finish(study, study.next(), 0.5)
    path = tmp_path / JOURNAL
    with path.open("ab") as file:
        file.write(b'{"op_code": 6, "worker')
    again = Study(tmp_path, SHARED)
    finish(again, again.next(), 0.7)
    with path.open("ab") as file:  # also while a process lives
        file.write(b'{"op_code"')
    finish(again, again.next(), 0.6)
    assert Study(tmp_path, SHARED).counts()["complete"] == 3
    assert again.best() == [1]


def test_a_trial_behind_the_others_is_hopeless(tmp_path):
    study = Study(tmp_path, SHARED)
    for value in (0.5, 0.6, 0.7, 0.8)[:AT_FIRST]:
        claimed = study.next()
        assert not claimed.report(value, 0)
        finish(study, claimed, value)
    claimed = study.next()
    assert not claimed.report(0.75, 0)
    finish(study, claimed, 0.75)
    claimed = study.next()
    assert claimed.report(0.4, 0)
    assert claimed.report(0.9, 0)  # of a resumed trial's epoch the first report stands
    study.drop(claimed, "behind", hopeless=True)
    assert study.counts() == {"complete": 5, "pruned": 1, "failed": 0, "running": 0}
    patient = Study(tmp_path / "b", Sweep(("recipe=a",), {"x": Interval(0.0, 1.0)}, trials=9, stop="none"))
    for value in (0.5, 0.6, 0.7, 0.8, 0.1):
        claimed = patient.next()
        assert not claimed.report(value, 0)
        finish(patient, claimed, value)


def test_of_several_goals_the_best_are_those_that_no_other_beats(tmp_path):
    sweep = Sweep(("recipe=a",), {"x": Interval(0.0, 1.0)}, trials=4, goal="pareto")
    study = Study(tmp_path, sweep)
    for values in ((0.9, 5.0, 100), (0.8, 1.0, 50), (0.7, 2.0, 60), (0.9, 6.0, 90)):
        claimed = study.next()
        assert not claimed.report(0.1, 0)
        study.complete(claimed, values, tmp_path)
    assert study.best() == [0, 1, 3]


def test_another_sweep_is_refused_and_more_trials_are_not(tmp_path):
    study = Study(tmp_path, SHARED)
    finish(study, study.next(), 1.0)
    for other in ({"words": ("recipe=b",)}, {"goal": "pareto"}, {"space": {"x": Interval(0.0, 2.0)}}):
        with pytest.raises(UserError, match="holds a sweep of") as caught:
            Study(tmp_path, Sweep(**{**vars(SHARED), **other}))
        assert "\n" not in str(caught.value)
    more = Study(tmp_path, Sweep(**{**vars(SHARED), "trials": 13}))
    assert len(run_all(more, lambda values: 0.0)) == 12
