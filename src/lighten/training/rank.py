"""The rank of this process, also before there is a Trainer."""

from lightning.pytorch.utilities import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process writes for all of them."""
    return getattr(rank_zero_only, "rank", 0) == 0
