"""Cells of Arrow columns as numbers or as names of categories; missing ones are marked, errors name the row from 1."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lighten.errors import UserError, shown

MISSING = ("", "?", "na", "n/a", "#n/a", "<na>", "nan", "null")
"""How tables spell that a cell is missing, in any case of letters."""
NUMBER, CATEGORY = "number", "category"

_NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)$"
_WHOLE = r"^([+-]?\d+)\.0*$"
_GROUPED = r"\d{1,3}([.,' \x{a0}\x{202f}]\d{3})+([.,]\d+)?"
_MONEY = r"[$€£¥]"
_SPELLED = rf"^{_MONEY}? ?[+-]?(\d+[.,]?\d*|[.,]\d+|{_GROUPED}) ?({_MONEY}|%)?$"
"""Numbers as people write them: with a decimal comma, thousands apart, a currency or a percent sign."""
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_TIME = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[ap]m)?"
_DAY = (
    r"\d{4}-\d{1,2}(-\d{1,2})?|\d{4}/\d{1,2}/\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}"
    rf"|(\d{{1,2}}\.?[ -])?{_MONTH}[ -]\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{4}}"
)
_DATE = rf"^({_TIME}|({_DAY})([t ]{_TIME}.*)?)$"
_TRUTH = ("true", "false")


def kind_of(
    column: pa.ChunkedArray,
    name: str,
    where: str,
    *,
    advice: str = "name the column in categories if these are no numbers",
) -> str:
    """Return ``"number"`` or ``"category"``: text is a category unless most of it reads as numbers.

    Args:
        column: of any type.
        name: of it, for messages.
        where: it is from, likewise.
        advice: what else than another spelling of numbers helps.

    Raises:
        UserError: if it holds dates or numbers that are spelled otherwise than Python's, or is of a type that is
            neither.
    """
    kind = column.type
    _check_plain(kind, name, where)
    if pa.types.is_boolean(kind):
        return CATEGORY
    if _is_numeric(kind) or pa.types.is_null(kind):
        return NUMBER
    if pa.types.is_temporal(kind):
        raise _dates(name, where)
    present = _stripped(column).drop_null()
    if not len(present):
        return NUMBER
    if pc.all(pc.match_substring_regex(present, _DATE, ignore_case=True)).as_py():
        raise _dates(name, where)
    numbers = pc.match_substring_regex(present, _NUMBER, ignore_case=True)
    if 2 * pc.sum(numbers).as_py() >= len(present):
        return NUMBER
    spelled = pc.match_substring_regex(present, _SPELLED)
    if 2 * pc.sum(pc.or_(numbers, spelled)).as_py() >= len(present):
        cell = present.filter(pc.and_not(spelled, numbers))[0].as_py()
        raise UserError(
            f"{where}: column {name!r} holds numbers that are written as {shown(cell)!r}; write digits and a decimal "
            f"point alone, or {advice}"
        )
    return CATEGORY


def numbers_of(
    column: pa.ChunkedArray,
    name: str,
    where: str,
    *,
    advice: str = "name the column in categories if it has no numbers",
) -> np.ndarray:
    """Return float64 (N,), NaN where a cell is missing.

    Args:
        column: of numbers, or of text that spells them.
        name: of it, for messages.
        where: it is from, likewise.
        advice: what else than mending a cell helps.

    Raises:
        UserError: if a cell is text, or not finite.
    """
    if is_text(column.type):
        column = _stripped(column)
        wrong = _first(pc.invert(pc.match_substring_regex(column, _NUMBER, ignore_case=True)))
        if wrong is not None:
            cell = shown(column[wrong].as_py())
            raise UserError(
                f"{where}: row {wrong + 1} of {name}: {cell!r} is text, expected a number; fix it, or {advice}"
            )
    elif not (_is_numeric(column.type) or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise UserError(f"{where}: column {name!r} holds {column.type}, expected numbers; choose another column")
    values = np.array(column.cast(pa.float64()).to_numpy(), np.float64)
    wrong = _first(np.isinf(values))
    if wrong is not None:
        raise UserError(f"{where}: row {wrong + 1} of {name}: {values[wrong]:g}, expected a finite number; fix it")
    return values


def names_of(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Return cells as text, null where one is missing; 3 and 3.0 are one name, in text too, and so are true and True.

    Raises:
        UserError: if they are neither numbers nor text.
    """
    _check_plain(column.type, name, where)
    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        whole = np.array_equal(values, np.round(values), equal_nan=True) and not np.isinf(values).any()
        column = pc.if_else(pc.is_nan(column), None, column)
        column = column.cast(pa.int64(), safe=False) if whole else column
    names = _stripped(column if is_text(column.type) else column.cast(pa.string()))
    names = pc.replace_substring_regex(names, _WHOLE, r"\1")
    lower = pc.utf8_lower(names)
    return pc.if_else(pc.is_in(lower, value_set=pa.array(_TRUTH)), lower, names)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of that type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def plain_name(name: str) -> str:
    """Return a name as :func:`names_of` gives it: 3 for 3.0."""
    return re.sub(_WHOLE, r"\1", name)


def is_number(text: str) -> bool:
    """Return whether a text spells a number."""
    return re.fullmatch(_NUMBER, text.strip(), re.IGNORECASE) is not None


def rows_of(mask: np.ndarray) -> str:
    """Return where ``mask`` is true, for messages: ``"row 3"``, ``"rows 3, 4 and 5"``, ``"rows 3, 4, 5 and 9 more"``.

    Example:
        >>> rows_of(np.array([True, False, True]))
        'rows 1 and 3'
    """
    rows = [str(row + 1) for row in np.flatnonzero(mask)]
    named = [*rows[:3], f"{len(rows) - 3} more"] if len(rows) > 3 else rows
    return f"row {named[0]}" if len(named) == 1 else f"rows {', '.join(named[:-1])} and {named[-1]}"


def _stripped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.is_in(pc.utf8_lower(text), value_set=pa.array(MISSING)), None, text)


def _check_plain(kind: pa.DataType, name: str, where: str) -> None:
    known = (pa.types.is_boolean, pa.types.is_null, pa.types.is_temporal, _is_numeric, is_text)
    if not any(is_kind(kind) for is_kind in known):
        raise UserError(f"{where}: column {name!r} holds {kind}, expected numbers or text; choose others")


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _dates(name: str, where: str) -> UserError:
    return UserError(
        f"{where}: column {name!r} holds dates; give their year, month or age as numbers, or name it in exclude"
    )


def _first(mask: "pa.ChunkedArray | np.ndarray") -> int | None:
    found = np.flatnonzero(mask if isinstance(mask, np.ndarray) else pc.fill_null(mask, False).to_numpy())
    return int(found[0]) if len(found) else None
