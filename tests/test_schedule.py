import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import UserError
from lighten.schedule import check_ramp, ramp


def zhu_and_gupta(step, initial, final, first_step, pruning_steps):
    """Equation 1 of arXiv 1710.01878, as printed there."""
    return final + (initial - final) * (1 - (step - first_step) / pruning_steps) ** 3


@pytest.mark.parametrize("step", [100, 137, 250, 599, 600])
def test_cubic_is_the_published_formula(step):
    expected = zhu_and_gupta(step, initial=0.0, final=1.0, first_step=100, pruning_steps=500)
    assert ramp(step / 1000, begin=0.1, end=0.6) == pytest.approx(expected, abs=1e-12)


def test_linear_is_the_share_of_the_way():
    assert ramp(0.3, begin=0.2, end=0.6, shape="linear") == pytest.approx(0.25)


def test_is_flat_outside():
    assert [ramp(p, begin=0.2, end=0.7) for p in (0.0, 0.1, 0.2, 0.7, 0.9, 1.0)] == [0, 0, 0, 1, 1, 1]


def test_begin_equal_to_end_is_a_step():
    assert [ramp(p, begin=0.5, end=0.5) for p in (0.49, 0.5, 0.51)] == [0, 1, 1]
    assert ramp(0.0, begin=0.0, end=0.0) == 1


share = st.floats(0, 1)


@given(share, share, share, share, st.sampled_from(["cubic", "linear"]))
def test_never_falls_and_stays_in_the_unit_interval(a, b, p, q, shape):
    begin, end = sorted((a, b))
    early, late = (ramp(x, begin=begin, end=end, shape=shape) for x in sorted((p, q)))
    assert 0 <= early <= late <= 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"begin": -0.1, "end": 0.5}, "begin=-0.1"),
        ({"begin": 0.1, "end": 1.5}, "end=1.5"),
        ({"begin": math.nan, "end": 0.5}, "begin=nan"),
        ({"begin": 0.6, "end": 0.1}, "end=0.1 comes before begin=0.6"),
        ({"begin": 0.1, "end": 0.6, "shape": "cubik"}, "did you mean 'cubic'"),
    ],
    ids=["begin below zero", "end above one", "not a number", "end before begin", "unknown shape"],
)
def test_refuses(settings, says):
    with pytest.raises(UserError, match=says):
        check_ramp(**settings)
    with pytest.raises(UserError, match=says):
        ramp(0.5, **settings)


def test_refuses_progress_that_is_no_number():
    with pytest.raises(UserError, match="progress=nan"):
        ramp(math.nan, begin=0.1, end=0.6)
