import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten.training.fit import make_trainer


class Plain(L.LightningModule):
    """Knows nothing of lighten; logs a score, and can be told to let its loss or its gradient go wrong."""

    def __init__(self, *, bad_loss_at: int | None = None, bad_gradient_at: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))
        self.bad_loss_at = bad_loss_at
        self.bad_gradient_at = bad_gradient_at

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        if self.global_step == self.bad_loss_at:
            loss = loss * float("nan")
        if self.global_step == self.bad_gradient_at:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        right = (self.net(inputs).argmax(1) == labels).float().mean()
        self.log("student/accuracy", right, batch_size=len(labels))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.fixture
def plain():
    return Plain


@pytest.fixture
def batches():
    """Twelve samples in three batches, in an order that depends on nothing."""
    draw = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(12, 5, generator=draw), torch.arange(12) % 2), 4)


@pytest.fixture
def trainer(tmp_path):
    def build(folder=tmp_path, *, callbacks=(), on_bad_batch="stop", **settings) -> L.Trainer:
        settings = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, **settings}
        return make_trainer(
            folder=folder, stage="student", settings={"log_every_n_steps": 1, **settings}, callbacks=callbacks,
            on_bad_batch=on_bad_batch,
        )  # fmt: skip

    return build
