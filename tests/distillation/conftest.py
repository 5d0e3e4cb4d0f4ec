import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten.training.fit import make_trainer

CLASSES = 4


@pytest.fixture
def net():
    def build(width: int, classes: int = CLASSES, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(width, classes),
            )

    return build


@pytest.fixture
def loader():
    def build(samples: int = 24, batch_size: int = 8, classes: int = CLASSES) -> DataLoader:
        draw = torch.Generator().manual_seed(1)
        inputs = torch.randn(samples, 3, 6, 6, generator=draw)
        labels = torch.arange(samples) % classes
        return DataLoader(TensorDataset(inputs, labels), batch_size)

    return build


@pytest.fixture
def fit(tmp_path):
    def run(module: L.LightningModule, train: DataLoader, **settings) -> L.Trainer:
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
        settings = {"max_epochs": 1} | quiet | settings
        trainer = make_trainer(folder=tmp_path, stage="student", settings=settings)
        trainer.fit(module, train, train)
        return trainer

    return run
