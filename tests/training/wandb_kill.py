"""Run by test_wandb_run.py: a fit that logs to W&B, killed as ``kill -9`` does after the step given, or not at all."""

import os
import signal
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten.training.checkpoint import latest_good
from lighten.training.fit import make_trainer
from lighten.training.loggers import ending, make_logger

EPOCHS, BATCHES = 6, 30


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, 2))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        self.log_dict({f"distil/share/{name}": loss.detach() for name in "abcdefgh"})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("student/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Kill(L.Callback):
    """Ends the process after a step, once W&B has taken in all that it was told."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.logger.experiment.step  # noqa: B018  waits for an answer
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="The `srun` command is available|.*LeafSpec|.*does not have many workers")
    torch.set_num_threads(1)
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    draw = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(4 * BATCHES, 5, generator=draw), torch.arange(4 * BATCHES) % 2)
    settings = {"max_epochs": EPOCHS, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    logger = make_logger("wandb", folder, config={"seed": 0})
    with ending(logger):
        trainer = make_trainer(folder=folder, stage="student", settings=settings, logger=logger, callbacks=[Kill(step)])
        resumed = latest_good(folder / "checkpoints")
        loader = DataLoader(data, 4)
        trainer.fit(Net(), loader, loader, ckpt_path=str(resumed) if resumed else None)
