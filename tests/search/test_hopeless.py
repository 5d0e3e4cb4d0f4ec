import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lighten.search.hopeless import HopelessError, StopHopeless


class Counting(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.current_epoch + 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tmp_path, report, mode="min", monitor="val_loss"):
    from lightning.pytorch.callbacks import ModelCheckpoint

    data = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4)
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StopHopeless(report), ModelCheckpoint(tmp_path, monitor=monitor, mode=mode)],
    )  # fmt: skip
    trainer.fit(Counting(), data, data)
    return trainer


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
def test_each_validation_is_reported_more_for_better(tmp_path, mode, sign):
    told = []
    fit(tmp_path, lambda value, epoch: told.append((value, epoch)), mode)
    assert told == [(sign * (epoch + 1.0), epoch) for epoch in range(4)]


def test_a_hopeless_fit_ends_with_a_line(tmp_path):
    with pytest.raises(HopelessError, match=r"^stopped after epoch 1: val_loss 2 is behind the other trials$"):
        fit(tmp_path, lambda value, epoch: epoch == 1)


def test_in_the_last_epoch_it_is_over_anyway_and_what_follows_goes_along(tmp_path):
    assert fit(tmp_path / "a", lambda value, epoch: epoch == 3).current_epoch == 4
    assert fit(tmp_path / "b", None).current_epoch == 4
