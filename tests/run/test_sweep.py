import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from finished_run import write_run

from lighten.errors import RecipeError, UserError
from lighten.recipe.schema import Recipe
from lighten.recipe.sweep import Interval, Sweep
from lighten.run import sweep as sweeps
from lighten.training.signals import Preempted


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Runs that are written instead of trained; ``world.does`` says what becomes of each."""

    class World:
        ran: list = []  # noqa: RUF012
        number = None
        does = staticmethod(lambda number, recipe: None)

        def compose(self, words):
            given = dict(word.split("=") for word in words)
            return Recipe(name="smoke", runs=str(tmp_path), id=given.get("id"), seed=int(given["seed"]))

        @contextmanager
        def in_job(self, number):
            self.number = number
            yield

        def run(self, recipe, callbacks=()):
            self.ran.append((self.number, recipe.seed))
            self.does(self.number, recipe)
            folder = Path(recipe.runs) / recipe.name / f"{recipe.id}-{self.number}"
            write_run(folder)
            scores = json.loads((folder / "scores.json").read_text())
            scores["models"]["compressed"]["accuracy"] = recipe.seed / 100
            (folder / "scores.json").write_text(json.dumps(scores))
            return folder

        def sweep(self, **settings):
            settings = {"space": {"seed": Interval(1, 90, whole=True)}, "trials": 4, "sampler": "random", **settings}
            return sweeps.run_sweep(Sweep(("recipe=smoke", "id=s"), **settings), self.compose, self.in_job)

    world = World()
    world.ran = []
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    monkeypatch.setattr(sweeps, "run", world.run)
    monkeypatch.setenv(sweeps.WORDS, "")
    return world


def test_a_sweep_from_words_to_page(world, tmp_path, capsys):
    page = world.sweep()
    assert [number for number, _ in world.ran] == [0, 1, 2, 3]
    assert page == tmp_path / "sweeps" / "s" / "compare.html"
    assert all(f"s-{number}" in page.read_text() for number in range(4))
    said = capsys.readouterr().out
    best = max(range(4), key=lambda number: world.ran[number][1])
    assert f"best: trial {best + 1}, seed={world.ran[best][1]}, " in said
    assert "4 complete" in said
    assert world.sweep() == page  # nothing is left to do
    assert len(world.ran) == 4


def test_what_fails_is_dropped_and_the_rest_goes_on(world, capsys):
    def does(number, recipe):
        if number == 1:
            raise UserError("no such\ncolumn")

    world.does = does
    world.sweep()
    assert "trial 2 dropped: no such column\n" in (said := capsys.readouterr().out)
    assert "3 complete, 1 failed" in said


def test_a_trial_that_a_signal_stopped_is_resumed_by_the_same_words(world, capsys):
    import signal

    def does(number, recipe):
        if number == 1:
            raise Preempted(signal.SIGTERM, "after step 3")

    world.does = does
    with pytest.raises(Preempted):
        world.sweep()
    stopped = world.ran[1]
    world.does = lambda number, recipe: None
    world.sweep()
    assert world.ran[2] == stopped
    assert len(world.ran) == 5
    assert "(resumed)" in capsys.readouterr().out


def test_a_bug_ends_the_sweep_but_is_not_met_again(world):
    def does(number, recipe):
        if number == 0:
            raise RuntimeError("shapes")

    world.does = does
    with pytest.raises(RuntimeError, match="shapes"):
        world.sweep()
    world.sweep()
    assert [number for number, _ in world.ran] == [0, 1, 2, 3]


def test_without_a_trial_that_came_to_an_end_it_is_an_error(world):
    def does(number, recipe):
        raise UserError("no such column")

    world.does = does
    with pytest.raises(UserError, match=r"no trial came to an end \(4 failed\); the last: no such column"):
        world.sweep()


def test_several_processes_of_one_task_are_refused(world, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(RecipeError, match="ntasks-per-node=1"):
        world.sweep()
