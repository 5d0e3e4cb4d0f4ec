"""Random numbers that a resumed fit repeats: a function of (seed, step, rank)."""

import hashlib
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class SeedSteps(Callback):
    """Seeds torch before each training batch, so that dropout is a function of seed, batch and rank.

    Args:
        seed: of the fit.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed; on the CPU its generator alone, as PyTorch asks after each kind of device for half a millisecond."""
        seed = torch.default_generator.manual_seed if pl_module.device.type == "cpu" else torch.manual_seed
        seed(step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Return 63 bits that depend on all four and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
