"""TextSet: batches of token ids, padded to their longest text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lighten.data.masking import mask_tokens
from lighten.data.tokens import Tokens
from lighten.training.order import Place

MULTIPLE = 8
"""Batches are as long as their longest text, rounded up to this: kernels like it, and shapes repeat."""


@dataclass(frozen=True)
class Masking:
    """How to ask for hidden tokens.

    Attributes:
        mask_id: of the mask token.
        special: int64, ids that are never asked for.
        vocab_size: random tokens are below it.
        seed: of the draws.
        each_epoch: other tokens in another epoch; else those of epoch 0 always.
    """

    mask_id: int
    special: np.ndarray
    vocab_size: int
    seed: int
    each_epoch: bool


class TextSet:
    """Whole batches by (epoch, sample): a dict of ``input_ids``, ``attention_mask`` (int64) and ``labels``.

    Pairs of texts also have ``token_type_ids`` where the tokenizer gives them. Padding is on the right.

    Args:
        tokens: of the data set that this is a part of.
        labels: of that data set, (N,) or (N, targets).
        texts: of that data set.
        rows: int64, which samples of it are in this part, in this order.
        pad_id: of the padding token.
        max_length: no batch is longer.
        masking: ask for hidden tokens instead of ``labels``.
        keyed: batches also have ``keys``, int64: the sample, or epoch * samples + sample with ``masking``.
    """

    def __init__(
        self,
        tokens: Tokens,
        labels: Tensor,
        texts: Sequence[str],
        rows: np.ndarray,
        *,
        pad_id: int,
        max_length: int,
        masking: Masking | None = None,
        keyed: bool = False,
    ) -> None:
        self.labels = labels[torch.from_numpy(rows)]
        self.lengths = tokens.lengths[rows]
        self.keyed = keyed
        self._tokens = tokens
        self._texts = texts
        self._rows = rows
        self._starts = tokens.offsets[:-1][rows]
        self._pad_id = pad_id
        self._max_length = max_length
        self._masking = masking

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def texts(self) -> list[str]:
        """The texts, first of a pair."""
        return [self._texts[row] for row in self._rows.tolist()]

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return one sample as in epoch 0, without the batch's dimension."""
        return {key: value[0] for key, value in self.__getitems__([(0, sample)]).items()}

    def __getitems__(self, places: list[Place]) -> dict[str, Tensor]:
        """Return the batch of these (epoch, sample) pairs."""
        epochs, samples = np.array(places, np.int64).reshape(-1, 2).T
        lengths = self.lengths[samples]
        width = min(self._max_length, -(-int(lengths.max(initial=1)) // MULTIPLE) * MULTIPLE)
        inside = np.arange(width) < lengths[:, None]
        where = np.where(inside, self._starts[samples][:, None] + np.arange(width), 0)
        ids = np.where(inside, self._tokens.ids[where], self._pad_id).astype(np.int64)
        labels = self.labels[torch.from_numpy(samples)]
        if self._masking is not None:
            ids, asked = self._hide(ids, inside, epochs, samples, self._masking)
            labels = torch.from_numpy(asked)
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(inside.astype(np.int64))}
        if self._tokens.types is not None:
            types = np.where(inside, self._tokens.types[where], 0).astype(np.int64)
            batch["token_type_ids"] = torch.from_numpy(types)
        batch["labels"] = labels
        if self.keyed:
            view = epochs if self._masking is not None else 0
            batch["keys"] = torch.from_numpy(view * len(self) + samples)
        return batch

    @staticmethod
    def _hide(
        ids: np.ndarray, inside: np.ndarray, epochs: np.ndarray, samples: np.ndarray, masking: Masking
    ) -> tuple[np.ndarray, np.ndarray]:
        return mask_tokens(
            ids,
            inside & ~np.isin(ids, masking.special),
            seed=masking.seed,
            epochs=epochs if masking.each_epoch else np.zeros_like(epochs),
            samples=samples,
            mask_id=masking.mask_id,
            vocab_size=masking.vocab_size,
        )
