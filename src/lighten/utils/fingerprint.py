"""Fingerprints of plain values."""

import hashlib
import json
from typing import Any

from lighten.errors import UserError


def fingerprint_of(**parts: Any) -> str:
    """Return the SHA-256 (hex) of everything that decides what a model becomes, as canonical JSON.

    Args:
        parts: such as ``model``, ``data``, ``settings`` and ``seed``; plain Python throughout.

    Raises:
        UserError: if a part is not plain Python.

    Example:
        >>> fingerprint_of(a=1, b=[2]) == fingerprint_of(b=[2], a=1)
        True
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"a fingerprint is made of plain Python values only ({error})") from error
    return hashlib.sha256(text.encode()).hexdigest()
