"""TextData: texts, or pairs of them, for an encoder, with splits, tokens and batches of similar length."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from lighten.data.checks import check_at_least
from lighten.data.loaders import SplitData, check_validation
from lighten.data.text_part import Texts, check_part, hold_out
from lighten.data.text_set import Masking, TextSet
from lighten.data.tokens import Tokenizer, Tokens, cached_tokens
from lighten.errors import UserError, did_you_mean
from lighten.tasks import task_of

OBJECTIVES = ("labels", "mlm")
_FIXED_SEED = 20181011
"""Of the masks of validation and test; any constant would do, so that all runs are asked for the same tokens."""


class TextData(SplitData):
    """A text data set with a validation split taken out of its training part.

    Batches are dicts of ``input_ids``, ``attention_mask``, for pairs ``token_type_ids`` where the tokenizer gives
    them, and ``labels``. Labels are int64 (batch,) for classification, float32 (batch, classes) of 0 and 1 for
    ``multilabel``, float32 (batch, targets) for ``regression``, and int64 (batch, length) for ``masked_lm``: the
    token where it was hidden, else -100.

    Args:
        read: reads the texts; called once, when they are first needed.
        batch_size: samples of one process.
        seed: of order and masks.
        workers: processes that fetch batches ahead; 0 is fine for tokens in memory.
        validation: samples taken out of the training part, the same for every seed; see :func:`hold_out`.
        tokenizer: ``minilm``, a folder, or a name on the hub.
        max_length: tokens of a sample, special ones included; longer ones are cut.
        bucket: batches of similar length in training, which pads less.
        objective: ``labels``, or ``mlm``: hide tokens and ask for them, whatever the labels.
        task: ``classification``, ``multilabel`` or ``regression``.
        class_names: where they are known without reading.
        content: hexadecimal digest of the texts where it is known without reading them.
        licence: one line.

    Raises:
        UserError: if ``batch_size`` or ``validation`` is below 1, ``workers`` below 0, ``max_length`` below 8, or
            ``objective`` unknown, or a value is of another type.
    """

    task: str = "classification"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __init__(
        self,
        read: Callable[[], Texts],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        validation: int,
        tokenizer: str = "minilm",
        max_length: int = 32,
        bucket: bool = True,
        objective: str = "labels",
        task: str = "classification",
        class_names: tuple[str, ...] | None = None,
        content: str | None = None,
        licence: str = "not stated",
    ) -> None:
        super().__init__()
        check_at_least(0, workers=workers)
        check_at_least(1, batch_size=batch_size, validation=validation)
        check_at_least(8, max_length=max_length)
        if not isinstance(tokenizer, str) or not tokenizer:
            raise UserError(f"tokenizer={tokenizer!r}, expected minilm, a folder, or a name on the hub")
        if not isinstance(bucket, bool):
            raise UserError(f"bucket={bucket!r}, expected true or false")
        if objective not in OBJECTIVES:
            raise UserError(f"objective={objective!r}; {did_you_mean(str(objective), OBJECTIVES)}")
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.validation = validation
        self.max_length = max_length
        self.bucket = bucket
        self.objective = objective
        self.task = "masked_lm" if objective == "mlm" else task
        self.licence = licence
        self.input_shape = (max_length,)
        self.views = None if objective == "mlm" else 1
        self.options = {}
        self._read = read
        self._tokenizer_name = tokenizer
        self._class_names = class_names
        self._content = content

    @cached_property
    def texts(self) -> Texts:
        """All texts and labels; read when first asked for.

        Raises:
            UserError: if a part has no samples, a text is empty, or a label is out of range.
        """
        texts = self._read()
        names = self._class_names if self._class_names is not None else texts.class_names
        classes = len(names) if self._of_classes else None
        for part, where in ((texts.train, "training"), (texts.test, "test")):
            check_part(part, where, f"data {self.name}", classes=classes)
        return texts

    @property
    def _of_classes(self) -> bool:
        return self.objective != "mlm" and task_of(self.task).reads == "classes"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or of the targets of a regression; none for ``masked_lm``."""
        if self.objective == "mlm":
            return ()
        return self._class_names if self._class_names is not None else self.texts.class_names

    @property
    def num_classes(self) -> int:
        """Outputs of a model: classes, targets of a regression, or tokens of the vocabulary."""
        return self.vocab_size if self.objective == "mlm" else len(self.class_names)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(self._tokenizer_name)
        tokenizer.check_length(self.max_length)
        if self.objective == "mlm" and tokenizer.backend.mask_token_id is None:
            raise UserError(
                f"objective=mlm, but tokenizer={self._tokenizer_name!r} has no mask token; choose another tokenizer"
            )
        return tokenizer

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer of ``transformers``.

        Raises:
            UserError: if it is not found, or ``max_length`` is more than its model takes.
        """
        return self._tokenizer.backend

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return len(self.tokenizer)

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Tokens of the parts ``train`` (validation included) and ``test``; made once, then read from the cache.

        Raises:
            UserError: if a text comes to no token.
        """
        parts = {"train": self.texts.train, "test": self.texts.test}
        tokens = {
            key: cached_tokens(self._tokenizer, part.texts, part.pairs, self.max_length) for key, part in parts.items()
        }
        for key, found in tokens.items():
            empty = np.flatnonzero(found.lengths == 0)
            if len(empty):
                raise UserError(
                    f"data {self.name}: {len(empty)} texts of the {key} part come to no token, the first in row "
                    f"{empty[0] + 1}; remove them, or choose another tokenizer"
                )
        return tokens

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, the tokenizer and of the options that change what a model sees."""
        seen = {
            "content": self._content or self.texts.digest,
            "validation": self.validation,
            "tokenizer": self._tokenizer.digest,
            "max_length": self.max_length,
            "task": self.task,
        }
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def prepare_data(self) -> None:
        """Read and tokenize, so that mistakes are reported before a worker starts and other processes find a cache."""
        _ = self.tokens

    def setup(self, stage: str) -> None:
        """Split the training part; the same for every stage."""
        part = self.texts.train
        check_validation(self, len(part.texts))
        rest, held_out = hold_out(part, self.validation, by_class=self._of_classes)
        if not len(rest):
            raise UserError(
                f"data {self.name}: validation={self.validation} leaves nothing for training, as equal texts stay "
                "together; hold out fewer"
            )
        self.train_set = self._set("train", rest, training=True)
        self.val_set = self._set("train", held_out)
        self.test_set = self._set("test", np.arange(len(self.texts.test.texts)))

    @property
    def train_samples(self) -> int:
        """Samples of an epoch, after ``setup``."""
        return len(self.train_set)

    @property
    def lengths(self) -> Any:
        """Lengths of the training texts where batches go by them."""
        return self.train_set.lengths if self.bucket else None

    def _set(self, key: str, rows: np.ndarray, *, training: bool = False) -> TextSet:
        part = self.texts.train if key == "train" else self.texts.test
        masking = None
        if self.objective == "mlm":
            masking = Masking(
                mask_id=self.tokenizer.mask_token_id,
                special=np.array(sorted(self.tokenizer.all_special_ids)),
                vocab_size=self.vocab_size,
                seed=self.seed if training else _FIXED_SEED,
                each_epoch=training,
            )
        return TextSet(
            self.tokens[key],
            part.labels,
            part.texts,
            rows,
            pad_id=self.tokenizer.pad_token_id,
            max_length=self.max_length,
            masking=masking,
        )
