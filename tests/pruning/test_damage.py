from itertools import pairwise

import pytest

from lighten.pruning.damage import GroupSensitivity


def test_the_share_is_where_the_slope_of_the_damage_meets_the_price():
    """Of a damage of share squared, whose slope is twice the share."""
    group = GroupSensitivity([(i / 100, (i / 100) ** 2) for i in range(101)], saving=0.5)
    for price in (0.4, 1.0, 2.0, 3.2):
        assert group.share_at(price) == pytest.approx(price * 0.5 / 2, rel=1e-9)


def test_what_saves_nothing_keeps_all():
    curve = [(0.0, 0.0), (1.0, 1.0)]
    assert GroupSensitivity(curve, saving=0.0).share_at(100.0) == 0.0
    assert GroupSensitivity([(0.0, 0.0)], saving=1.0).share_at(100.0) == 0.0


def test_a_higher_price_never_removes_less_also_of_a_curve_that_is_not_convex():
    group = GroupSensitivity([(0.0, 0.0), (0.25, 0.5), (0.5, 0.55), (0.9, 3.0)], saving=1.0)
    shares = [group.share_at(price / 5) for price in range(400)]
    assert all(low <= high for low, high in pairwise(shares))
    assert (shares[0], shares[-1]) == (0.0, 0.9)
