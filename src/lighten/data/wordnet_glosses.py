"""WordNet glosses: definitions to be classified by the kind of thing, property or deed that they define, one of 45.

The kinds are WordNet's lexicographer files, such as ``noun.animal`` and ``verb.motion``. An embedded subset of 16,000
training and 2,000 test glosses needs no network; ``folder`` gets all of them, about 117,000.
"""

import io
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from lighten.data.embedded import EmbeddedFile, to_parquet
from lighten.data.registry import register_data

if TYPE_CHECKING:
    from lighten.data.text import TextData
    from lighten.data.text_part import Part, Texts

EMBEDDED = EmbeddedFile(
    "wordnet_glosses.parquet",
    "fc90413ec5906f602be0994637942752d38a1e85080955955321f5f861bad72e",
    script="build_wordnet_glosses.py",
)
LICENCE = "WordNet 3.0: WordNet licence, Copyright 2006 by Princeton University, https://wordnet.princeton.edu"
Row = tuple[str, int]
"""A gloss and the number of its class."""


@register_data("wordnet_glosses")
def wordnet_glosses(
    *,
    batch_size: int,
    seed: int,
    workers: int,
    folder: str | None = None,
    validation: int = 1500,
    tokenizer: str = "minilm",
    max_length: int = 32,
    bucket: bool = True,
    objective: str = "labels",
) -> "TextData":
    """Build the data module of WordNet's glosses.

    Args:
        batch_size: samples of one process.
        seed: of order and masks.
        workers: processes that fetch batches ahead.
        folder: of WordNet's data files, for all glosses; Debian's ``wordnet-base`` puts them in
            ``/usr/share/wordnet``. ``None`` takes the embedded subset.
        validation: samples held out of the training part.
        tokenizer: ``minilm``, a folder, or a name on the hub.
        max_length: tokens of a gloss, special ones included; 19 of 20 have at most 32.
        bucket: batches of similar length in training, which pads less.
        objective: ``labels``, or ``mlm`` to hide tokens and ask for them.
    """
    from lighten.data.text import TextData
    from lighten.data.wordnet import CLASSES

    return TextData(
        read_embedded if folder is None else partial(read_folder, folder),
        content=EMBEDDED.sha256 if folder is None else None,
        class_names=CLASSES,
        licence=LICENCE,
        batch_size=batch_size, seed=seed, workers=workers, validation=validation,
        tokenizer=tokenizer, max_length=max_length, bucket=bucket, objective=objective,
    )  # fmt: skip


@cache
def read_embedded() -> "Texts":
    """Return the embedded subset; decoded once in a process.

    Raises:
        UserError: if the file is missing or not the one that was released.
    """
    return _texts(*decode(EMBEDDED.read()))


def read_folder(folder: str) -> "Texts":
    """Return all glosses from WordNet's data files.

    Raises:
        UserError: if a file is missing or none of WordNet's.
    """
    from lighten.data.wordnet import is_test, read_glosses

    rows = read_glosses(folder)
    return _texts([row for row in rows if not is_test(row[0])], [row for row in rows if is_test(row[0])])


def encode(train: Sequence[Row], test: Sequence[Row]) -> bytes:
    """Return the embedded file's content; the same rows give the same bytes with the same version of pyarrow."""
    import pyarrow as pa

    rows = [*train, *test]
    columns = {
        "split": pa.array(["train"] * len(train) + ["test"] * len(test), pa.string()),
        "label": pa.array([label for _, label in rows], pa.uint8()),
        "text": pa.array([text for text, _ in rows], pa.string()),
    }
    return to_parquet(pa.table(columns))


def decode(content: bytes) -> tuple[list[Row], list[Row]]:
    """Return the training and the test rows of a file that :func:`encode` wrote."""
    import pyarrow.parquet as pq

    columns = pq.read_table(io.BytesIO(content)).to_pydict()
    rows = list(zip(columns["text"], columns["label"], strict=True))
    train = columns["split"].count("train")
    return rows[:train], rows[train:]


def _texts(train: Sequence[Row], test: Sequence[Row]) -> "Texts":
    from lighten.data.text_part import Texts
    from lighten.data.wordnet import CLASSES

    return Texts(_part(train), _part(test), CLASSES)


def _part(rows: Sequence[Row]) -> "Part":
    import torch

    from lighten.data.text_part import Part

    return Part([text for text, _ in rows], torch.tensor([label for _, label in rows], dtype=torch.int64))
