"""Checks of a setting's value, alike for Python, recipes and the command line."""

import math
from collections.abc import Iterable

from lighten.errors import UserError, did_you_mean


def check_one_of(key: str, given: object, choices: Iterable[str]) -> None:
    """Raise ``UserError`` unless ``given`` is one of ``choices``.

    Example:
        >>> check_one_of("score", "fpgn", ["fpgm", "l1"])
        Traceback (most recent call last):
        lighten.errors.UserError: score='fpgn': did you mean 'fpgm'? Choices: fpgm, l1
    """
    choices = list(choices)
    if given not in choices:
        raise UserError(f"{key}={given!r}: {did_you_mean(str(given), choices)}")


def check_whole(key: str, given: object, least: int, most: int | None = None) -> None:
    """Raise ``UserError`` unless ``given`` is an integer from ``least`` to ``most``."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not (whole and given >= least and (most is None or given <= most)):  # type: ignore[operator]
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{key}={given!r}: expected a whole number, {expected}")


def check_number(
    key: str,
    given: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ``UserError`` unless ``given`` is a finite number within the bounds."""
    if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        met = (least is None or given >= least) and (above is None or given > above)
        if met and (most is None or given <= most) and (below is None or given < below):
            return
    bounds = [("at least", least), ("above", above), ("at most", most), ("below", below)]
    expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    raise UserError(f"{key}={given!r}: expected a number {expected}")
