"""Correlation of ranks."""

from collections.abc import Sequence


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties sharing their mean rank; ``None`` where one side is all alike.

    Example:
        >>> spearman([1.0, 2.0, 3.0], [0.1, 0.5, 0.2])
        0.5
    """
    a, b = _ranks(one), _ranks(other)
    mean = (len(a) + 1) / 2
    across = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    if not across:
        return None
    return float(sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / across**0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
