"""Fits on two gloo ranks that log to W&B into the folder given: whole, and preempted and gone on with."""

import json
import signal
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Prune, Quantize
from lighten.training import signals
from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer
from lighten.training.loggers import ending, make_logger
from lighten.training.optimizer import OptimizerSettings
from lighten.training.order import OrderedLoader

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)


class Net(nn.Sequential):
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(24, 3),
        )  # fmt: skip


class Rows(TensorDataset):
    def __getitems__(self, places):
        return self[[sample for _, sample in places]]


class Stop(L.Callback):
    """Signals one rank alone, as a scheduler may."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == 1:
            signals._seen.append(signal.SIGUSR1)


class Data(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        images = torch.randn(64, 1, 4, 4, generator=draw)
        self.samples = images, (images.mean((1, 2, 3)) * 20).long() % 3

    def train_dataloader(self):
        return OrderedLoader(Rows(*self.samples), batch_size=4, seed=0)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.samples), 4)


def fit(folder: Path, *, stop: int = 0) -> int:
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 2,
        "gradient_clip_val": 1.0, "enable_progress_bar": False,
    }  # fmt: skip
    signals._seen.clear()
    module = DistillationModule(Net(2), Net(1), optimizer=OptimizerSettings("sgd", lr=0.05))
    logger = make_logger("wandb", folder, config={"seed": 0})
    callbacks = [Stop(stop), Prune(0.5, begin=0.2, end=0.6), Quantize(begin=0.7)]
    try:
        with ending(logger):
            trainer = make_trainer(
                folder=folder, stage="student", settings=settings, logger=logger, callbacks=callbacks
            )
            resumed = latest_good(folder / "checkpoints")
            trainer.fit(module, Data(), ckpt_path=str(resumed) if resumed else None, weights_only=True)
    except signals.Preempted:
        pass
    signals._seen.clear()
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps({"step": trainer.global_step}))
    return trainer.global_rank


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    fit(home / "recipe" / "whole")
    fit(home / "recipe" / "parts", stop=5)
    fit(home / "recipe" / "parts")
