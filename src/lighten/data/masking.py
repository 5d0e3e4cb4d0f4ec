"""Masking of tokens for masked language modelling (Devlin et al. 2019)."""

import numpy as np

from lighten.training.order import draw, draw_below

SHARE = 0.15
"""Of a text's ordinary tokens; the paper's section 3.1, with 80 %, 10 % and 10 % below."""

IGNORED = -100
"""Label where nothing is asked; what PyTorch's cross-entropy ignores by default."""

_FIRST_STREAM = 16
"""Draws for a token are streams of its sample, three a position, above those of the order."""


def mask_tokens(
    ids: np.ndarray,
    ordinary: np.ndarray,
    *,
    seed: int,
    epochs: np.ndarray,
    samples: np.ndarray,
    mask_id: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels, int64 (N, L): a function of (seed, epoch, sample), whatever the batch and its padding.

    Of each text 15 % of the ordinary tokens, rounded, and at least one, are asked for, as in the authors' code: a
    batch without any label cannot come about. Of these 80 % become the mask, 10 % any token, 10 % stay.

    Args:
        ids: int64 (N, L).
        ordinary: bool (N, L), tokens that may be asked for: neither padding nor special.
        seed: of the draws.
        epochs: int64 (N,).
        samples: int64 (N,).
        mask_id: of the mask token.
        vocab_size: random tokens are below it.
    """
    place = epochs[:, None], samples[:, None]
    stream = _FIRST_STREAM + 3 * np.arange(ids.shape[1])
    ticket = draw(seed, *place, stream=stream) >> np.uint64(1)
    ticket[~ordinary] = np.iinfo(np.uint64).max
    rank = ticket.argsort(1, kind="stable").argsort(1, kind="stable")
    count = ordinary.sum(1)
    asked = np.where(count > 0, np.maximum(1, np.floor(SHARE * count + 0.5)), 0)
    chosen = rank < asked[:, None]
    tenth = draw_below(10, seed, *place, stream=stream + 1)
    other = draw_below(vocab_size, seed, *place, stream=stream + 2)
    inputs = np.where(chosen & (tenth < 8), mask_id, np.where(chosen & (tenth == 8), other, ids))
    return inputs, np.where(chosen, ids, IGNORED)
