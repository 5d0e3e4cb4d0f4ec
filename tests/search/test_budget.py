"""How a budget is shared out, and when a trial is given up."""

import pytest

from lighten import UserError
from lighten.search.budget import Allotment, check_epochs, check_time, hopeless
from lighten.search.needs import Budget, Needs

NEEDS = Needs(max_drop=0.01)


def test_epochs_are_shared_out_and_never_more_than_there_are():
    shares = Allotment.of(Budget(epochs=10), 1.0, 0.0, 5.0, steps=100)
    assert (shares.first, shares.next) == (4.0, 2.0)
    assert shares.fits(4.0, 0.0, 0.0, 5.0, 1.0) == 4.0
    assert shares.fits(2.0, 8.5, 0.0, 5.0, 1.0) == 1.0
    assert shares.fits(2.0, 9.5, 0.0, 5.0, 1.0) == 0.5
    assert shares.fits(2.0, 9.9, 0.0, 5.0, 1.0) is None


def test_time_is_shared_out_by_pace_and_what_a_trial_takes_beside():
    shares = Allotment.of(Budget(seconds=100), 2.0, 10.0, 4.0, steps=100)
    assert shares.first == int(0.4 * (92 - 10 - 12) / 2)
    assert shares.fits(6.0, 0.0, 80.0, 4.0, 2.0) == 4.0
    assert shares.fits(6.0, 0.0, 87.9, 4.0, 2.0) is None


def test_a_fine_tune_has_some_steps():
    shares = Allotment.of(Budget(epochs=4), 1.0, 0.0, 0.0, steps=4)
    assert shares.next >= 1.25
    assert shares.fits(shares.next, 3.0, 0.0, 0.0, 1.0) is None


def test_too_small_a_budget_says_what_it_takes():
    with pytest.raises(UserError, match=r"0.1 epochs: too small for one trial, which takes 0.25"):
        check_epochs(Budget(epochs=0.1))
    with pytest.raises(UserError, match=r"3 s: too small for one trial, which takes about 12 s"):
        check_time(Budget(seconds=3), 4.0)
    check_time(Budget(seconds=13), 4.0)
    check_time(Budget(epochs=1), 4.0)


def test_hopeless_is_what_would_not_come_within_reach():
    far, near, falls = [0.5, 0.5, 0.5], [0.02, 0.02, 0.02], [0.5, 0.4, 0.2]
    assert "is foreseen" in hopeless(far, 6, 8, NEEDS, left=None, pace=1.0)
    assert hopeless(far, 3, 8, NEEDS, left=None, pace=1.0) is None
    assert hopeless(near, 6, 8, NEEDS, left=None, pace=1.0) is None
    assert hopeless(falls, 6, 8, NEEDS, left=None, pace=1.0) is None
    assert hopeless(far, 8, 8, NEEDS, left=None, pace=1.0) is None
    assert hopeless(far, 6, 8, Needs(macs=5), left=None, pace=1.0) is None
    assert "within the budget" in hopeless(near, 2, 8, NEEDS, left=10.0, pace=5.0)
