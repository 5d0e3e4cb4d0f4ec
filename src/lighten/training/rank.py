"""Which of several processes this one is, also before a Trainer knows."""

from lightning.pytorch.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process writes for all of them."""
    return getattr(rank_zero_only, "rank", 0) == 0
