"""From a stranger's files or rows to a batch, as the data module made them: what it wrote down is read here."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from lighten.errors import UserError, did_you_mean
from lighten.utils.inputs import Call

_KINDS = {
    "images": "lighten.data.image_reader",
    "numbers": "lighten.data.number_reader",
}
"""Kind -> module with a function ``reader_of``."""


class Reader(Protocol):
    """Prepares inputs as a data module does for evaluation."""

    def read(self, sources: Sequence[Any]) -> Call:
        """Return the arguments of a model for a batch of files, or of rows.

        Raises:
            UserError: if one cannot be read.
        """
        ...


def reader_of(settings: Mapping[str, Any]) -> Reader:
    """Return the reader that a data module's ``preprocessing()`` describes.

    Args:
        settings: in JSON types, as a model folder's ``config.json`` has them under ``preprocessing``.

    Raises:
        UserError: if the kind is unknown, or a setting is missing or wrong.
    """
    kind = settings.get("kind")
    if kind not in _KINDS:
        raise UserError(f"preprocessing is of the kind {kind!r}; {did_you_mean(str(kind), _KINDS)}")
    try:
        return import_module(_KINDS[kind]).reader_of(settings)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"preprocessing of the kind {kind!r} is not whole ({error}); take it from config.json"
        ) from error
