import pytest

from lighten.errors import RecipeError
from lighten.recipe.sweep import Interval, sweep_of


def test_words_without_a_sampler_are_no_sweep():
    assert sweep_of(["-m", "recipe=smoke", "seed=1,2"]) is None


def test_what_varies_is_told_from_what_does_not():
    sweep = sweep_of(
        ["-m", "recipe=smoke", "sweep.trials=7", "optimizer.lr=tag(log,interval(0.01,0.3))", "seed=1,2,1", "id=a",
         "data_options.x=[1,2]", "+student_options.width=range(8,11)", "batch_size=int(interval(16,64))",
         "sweep.goal=pareto", "sweep.seed=3"]
    )  # fmt: skip
    assert sweep.words == ("recipe=smoke", "id=a", "data_options.x=[1,2]")
    assert sweep.space == {
        "optimizer.lr": Interval(0.01, 0.3, log=True),
        "seed": ("1", "2"),
        "+student_options.width": ("8", "9", "10"),
        "batch_size": Interval(16, 64, whole=True),
    }
    assert (sweep.trials, sweep.sampler, sweep.goal, sweep.stop, sweep.seed) == (7, "tpe", "pareto", "median", 3)
    assert sweep.drawn({"seed": "2"}) == [*sweep.words, "seed=2"]
    assert sweep.first()["batch_size"] == 16


def test_the_same_sweep_has_the_same_name_also_with_more_trials():
    words = ["-m", "recipe=smoke", "seed=1,2"]
    names = {sweep_of([*words, f"sweep.trials={n}"]).identity for n in (2, 5)}
    assert len(names) == 1
    assert sweep_of([*words, "sweep.trials=2", "batch_size=32"]).identity not in names
    assert sweep_of([*words, "sweep.trials=2", "sweep.seed=1"]).identity not in names


def test_a_grid_has_as_many_trials_as_combinations():
    words = ["-m", "recipe=a,b", "seed=1,2,3", "sweep.sampler=grid"]
    assert sweep_of(words).trials == 6
    assert sweep_of([*words, "sweep.trials=4"]).trials == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1,2", "sweep.trials=3"], "is of a sweep; add -m"),
        (["-m", "sweep.trials=3"], "nothing varies"),
        (["-m", "seed=1,2", "sweep.trials=0"], "sweep.trials=0: expected a whole number, 1 to 1000"),
        (["-m", "seed=1,2", "sweep.trials=many"], "sweep.trials=many: expected a whole number"),
        (["-m", "seed=1,2", "sweep.trial=3"], "did you mean 'trials'"),
        (["-m", "seed=1,2", "sweep.sampler=tp"], "did you mean 'tpe'"),
        (["-m", "seed=1,2", "sweep.goal=speed"], "sweep.goal='speed'"),
        (["-m", "seed=1,2", "sweep.stop=now"], "sweep.stop='now'"),
        (["-m", "seed=interval(3,1)", "sweep.trials=2"], "expected two rising numbers"),
        (["-m", "seed=tag(log,interval(0,1))", "sweep.trials=2"], "above zero for log"),
        (["-m", "seed=interval(1,3)", "sweep.sampler=grid"], "seed is an interval"),
        (["-m", "seed=range(0,2000)", "sweep.sampler=grid"], "2,000 combinations, expected 1,000 at most"),
    ],
)
def test_bad_words_are_one_line(words, says):
    with pytest.raises(RecipeError) as caught:
        sweep_of(words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
