"""Equations of einsum, taken apart."""

import string
from collections.abc import Sequence
from dataclasses import dataclass


def terms_of(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """Return the indices of each operand and of the result, an ellipsis spelt out; None where one is read twice.

    Args:
        equation: as einsum takes it.
        ranks: how many dimensions each operand has.

    Example:
        >>> terms_of("...d,hdk->...hk", (3, 3))
        (['YZd', 'hdk'], 'YZhk')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    unused = [letter for letter in string.ascii_uppercase if letter not in equation]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(operands, ranks, strict=True)]
    most = max((n for n, term in zip(hidden, operands, strict=True) if "..." in term), default=0)
    letters = "".join(unused[len(unused) - most :])
    spelt = [t.replace("...", letters[len(letters) - n :]) for t, n in zip(operands, hidden, strict=True)]
    if not arrow:
        once = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        right = "..." + "".join(once)
    right = right.replace("...", letters)
    return (spelt, right) if all(len(set(term)) == len(term) for term in (*spelt, right)) else None


@dataclass(frozen=True)
class Pair:
    """The indices of a product of two, by what becomes of them.

    Attributes:
        batch: in both, and in the result.
        rows: of the first, and in the result.
        columns: of the second, and in the result.
        summed: in both, and not in the result.
        alone: of the first, and of the second; summed over before the two meet.
    """

    batch: str
    rows: str
    columns: str
    summed: str
    alone: tuple[str, str]

    @classmethod
    def of(cls, one: str, other: str, right: str) -> "Pair":
        """Sort the indices of the operands."""

        def those(term: str, *, shared: bool, kept: bool, beside: str) -> str:
            return "".join(c for c in term if (c in beside) == shared and (c in right) == kept)

        return cls(
            batch=those(one, shared=True, kept=True, beside=other),
            rows=those(one, shared=False, kept=True, beside=other),
            columns=those(other, shared=False, kept=True, beside=one),
            summed=those(one, shared=True, kept=False, beside=other),
            alone=(
                those(one, shared=False, kept=False, beside=other),
                those(other, shared=False, kept=False, beside=one),
            ),
        )
