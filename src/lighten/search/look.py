"""A look at a network before anything is tried: what it is made of, what can be cut, and what that costs."""

from typing import Any

from lighten.search.needs import Needs
from lighten.search.quality import Quality
from lighten.search.splits import Splits
from lighten.search.subject import Subject


def look_at(
    subject: Subject, quality: Quality, splits: Splits, needs: Needs, data: Any, *, limit: float | None
) -> dict[str, Any]:
    """Return the look."""
    return {
        "kind": "convolutional",
        "groups": [],
        "layers": [],
        "latency": [],
        "seconds_per_epoch": 10.0,
        "prunable": True,
        "first": 0.5,
        "why_first": "half goes first",
        "sentences": [],
        "exclude": [],
    }
