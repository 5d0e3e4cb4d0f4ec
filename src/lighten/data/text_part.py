"""Parts of a text data set: texts with labels, their checks, and the choice of those held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lighten.data.split import whole_groups
from lighten.data.tokens import digest_texts
from lighten.errors import UserError


@dataclass(frozen=True)
class Part:
    """Texts of a training or a test part.

    Attributes:
        texts: first or only ones.
        labels: int64 (N,) for classification, else float32 (N, targets).
        pairs: second ones.
    """

    texts: Sequence[str]
    labels: Tensor
    pairs: Sequence[str] | None = None

    def select(self, rows: np.ndarray) -> "Part":
        """Return these rows alone."""
        chosen = rows.tolist()
        pairs = None if self.pairs is None else [self.pairs[row] for row in chosen]
        return Part([self.texts[row] for row in chosen], self.labels[torch.from_numpy(rows)], pairs)


@dataclass(frozen=True)
class Texts:
    """A data set's two parts, and the names of its classes or targets."""

    train: Part
    test: Part
    class_names: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        digest = hashlib.sha256("|".join(self.class_names).encode())
        for part in (self.train, self.test):
            for texts in (part.texts, part.pairs):
                digest.update(b"-" if texts is None else digest_texts(texts).encode())
            digest.update(str(tuple(part.labels.shape)).encode())
            digest.update(part.labels.contiguous().numpy().data)
        return digest.hexdigest()


def check_part(part: Part, where: str, source: str, *, classes: int | None) -> None:
    """Check what a model would choke on, or learn nonsense from.

    Args:
        part: to check.
        where: ``training`` or ``test``, for the message.
        source: likewise, such as ``data glue``.
        classes: labels are below it; ``None`` for labels that are no classes.

    Raises:
        UserError: if there are no texts, some are empty, the second texts or the labels are not as many, or a label
            is out of range.
    """
    count = len(part.texts)
    if not count:
        raise UserError(f"{source}: the {where} part has no rows, expected at least one")
    for kind, texts in (("texts", part.texts), ("second texts", part.pairs)):
        if texts is None:
            continue
        if len(texts) != count:
            raise UserError(f"{source}: the {where} part has {count} texts and {len(texts)} {kind}, expected as many")
        empty = [row for row, text in enumerate(texts, 1) if not text.strip()]
        if empty:
            raise UserError(
                f"{source}: {len(empty)} {kind} of the {where} part are empty, the first in row {empty[0]}; "
                "remove these rows, or fill them in"
            )
    if len(part.labels) != count:
        raise UserError(f"{source}: the {where} part has {count} texts and {len(part.labels)} labels, expected as many")
    if classes is not None:
        wrong = torch.nonzero((part.labels < 0) | (part.labels >= classes)).flatten()
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{source}: label {int(part.labels[row])} in row {row + 1} of the {where} part, "
                f"expected 0 to {classes - 1}; fix it, or name more classes"
            )


def hold_out(part: Part, count: int, *, by_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the rest and of ``count`` chosen samples, both ascending, int64.

    Texts (pairs) are chosen by a hash of what they say, so that neither the order of rows nor a seed matters. Copies
    of a chosen text come along, so that no text is on both sides; there can be a few more than ``count`` of them.

    Args:
        part: to split.
        count: samples to choose.
        by_class: each class gives its share.
    """
    pairs = part.pairs if part.pairs is not None else [""] * len(part.texts)
    keys = np.array([_hash(text, pair) for text, pair in zip(part.texts, pairs, strict=True)], np.uint64)
    return whole_groups(keys, part.labels if by_class else torch.zeros(len(keys), dtype=torch.int64), count)


def text_hash(text: str) -> bytes:
    """Return the SHA-256 of a text: what splits go by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _hash(text: str, pair: str) -> int:
    return int.from_bytes(hashlib.sha256(text_hash(text) + text_hash(pair)).digest()[:8], "big")
