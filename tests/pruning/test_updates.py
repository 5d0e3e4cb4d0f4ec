from itertools import pairwise

import pytest

from lighten.errors import UserError
from lighten.pruning.updates import Updates, update_steps


def made(updates, totals, *, done=0, ramp=0.0):
    """Take one step after another, of a fit of as many as ``totals`` says then; return (step, ramp) of each update."""
    found = []
    for step, total in enumerate(totals, done):
        due = updates.reached(step, total, last=step == total)
        if due is not None:
            ramp = updates.ramp_at(due, ramp)
            updates.made(due)
            found.append((step, ramp))
    return found


def of(**settings):
    return Updates(**{"begin": 0.0, "end": 1.0, "schedule": "linear", "repeat": False} | settings)


@pytest.mark.parametrize(("steps", "begin", "end"), [(1000, 0.1, 0.6), (20, 0.2, 0.8), (7, 0.0, 1.0), (100, 0.5, 0.5)])
def test_updates_are_even_few_and_reach_the_end(steps, begin, end):
    updates = update_steps(steps, begin=begin, end=end)
    assert 1 <= len(updates) <= 30
    assert updates == sorted(set(updates))
    assert updates[-1] == round(end * steps)
    assert all(begin * steps < step or begin == end for step in updates)
    gaps = [b - a for a, b in pairwise(updates)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_each_update_is_made_once_and_the_last_is_the_whole_amount():
    found = made(updates := of(begin=0.2, end=0.6), [10] * 11)
    assert found == [(3, pytest.approx(0.25)), (4, pytest.approx(0.5)), (5, pytest.approx(0.75)), (6, 1.0)]
    assert updates.ended


def test_a_fit_that_grows_shorter_on_the_way_ends_with_the_whole_amount_and_takes_nothing_back():
    found = made(of(end=0.8), [20] * 6 + [8] * 3)
    assert found[-1] == (6, 1.0)
    assert all(before[1] <= after[1] for before, after in pairwise(found))


def test_the_last_step_makes_the_last_update_however_many_were_foreseen():
    updates = of()
    made(updates, [100] * 5)
    assert updates.reached(5, 100, last=True) == 100
    assert updates.ramp_at(100, 0.1) == 1.0


def test_a_length_that_is_unknown_waits():
    updates = of()
    assert updates.reached(3, float("inf")) is None
    assert updates.reached(4, 10) is not None


def test_one_shot_is_one_update_or_the_whole_amount_again_and_again():
    assert made(of(begin=0.5, schedule="one_shot"), [10] * 11) == [(5, 1.0)]
    again = made(of(begin=0.5, end=0.8, schedule="one_shot", repeat=True), [10] * 11)
    assert again == [(5, 1.0), (6, 1.0), (7, 1.0), (8, 1.0)]


def test_goes_on_where_it_was_and_counts_from_where_it_began():
    whole = made(of(), [30] * 21, done=10)
    first = of()
    start = made(first, [30] * 9, done=10)
    assert first.state_dict() == {"updated": 8, "ended": False, "from": 10}
    second = of()
    second.load_state_dict(first.state_dict())
    assert start + made(second, [30] * 12, done=19, ramp=start[-1][1]) == whole


def test_a_ramp_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"end=0.1 comes before begin=0.2"):
        of(begin=0.2, end=0.1)
