import math

import pytest

from lighten.errors import UserError
from lighten.utils.checks import check_number, check_one_of, check_whole


@pytest.mark.parametrize("given", [0.5, 1, 1.0])
def test_numbers_within_their_bounds_pass(given):
    check_number("share", given, above=0, most=1)


@pytest.mark.parametrize("given", [0, 0.0, 1.01, -1, math.nan, math.inf, True, "0.5", None, [0.5]])
def test_other_numbers_are_refused(given):
    with pytest.raises(UserError) as caught:
        check_number("share", given, above=0, most=1)
    assert str(caught.value) == f"share={given!r}: expected a number above 0 and at most 1"


def test_a_lowest_value_belongs_to_the_range_and_what_is_above_does_not():
    check_number("share", 0, least=0, below=0.5)
    with pytest.raises(UserError, match=r"share=0\.5: expected a number at least 0 and below 0\.5"):
        check_number("share", 0.5, least=0, below=0.5)


@pytest.mark.parametrize(
    ("given", "most"), [(0, None), (4, 3), (1.0, None), (True, None), ("1", None), (None, None)], ids=str
)
def test_what_is_no_whole_number_in_its_range_is_refused(given, most):
    check_whole("count", 1, 1, most)
    with pytest.raises(UserError) as caught:
        check_whole("count", given, 1, most)
    expected = "1 to 3" if most else "1 or more"
    assert str(caught.value) == f"count={given!r}: expected a whole number, {expected}"


@pytest.mark.parametrize("given", ["tow", 2, ["two"], {}], ids=str)
def test_what_is_no_choice_is_refused(given):
    check_one_of("name", "two", {"one": 1, "two": 2})
    with pytest.raises(UserError) as caught:
        check_one_of("name", given, {"one": 1, "two": 2})
    hint = "did you mean 'two'? " if given in ("tow", ["two"]) else ""
    assert str(caught.value) == f"name={given!r}: {hint}Choices: one, two"
