"""A network and data so small and easy that a search takes seconds."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


class Blobs(L.LightningDataModule):
    """Noisy pictures (1, 8, 8), of which one quarter is bright."""

    task = "classification"

    def __init__(self, samples: int = 240, *, validation: bool = True, test: bool = True, noise: float = 0.6) -> None:
        super().__init__()
        self.samples, self.noise, self._test = samples, noise, test
        if not validation:
            self.val_dataloader = super().val_dataloader

    def _loader(self, seed, samples, **options):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (samples,), generator=draw)
        pictures = self.noise * torch.randn(samples, 1, 8, 8, generator=draw)
        for i, label in enumerate(labels.tolist()):
            pictures[i, :, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1.0
        return DataLoader(TensorDataset(pictures, labels), batch_size=40, **options)

    def train_dataloader(self):
        return self._loader(0, self.samples)

    def val_dataloader(self):
        return self._loader(1, 160)

    def test_dataloader(self):
        return self._loader(2, 200) if self._test else super().test_dataloader()


class Net(nn.Module):
    """Two convolutions with norms, then four classes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.other = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, image):
        x = self.norm(self.first(image)).relu()
        x = self.other(self.second(x)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def trained(net: nn.Module, data: Blobs, epochs: int = 12) -> nn.Module:
    """Return the network trained in plain PyTorch."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(epochs):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net.train()(x), y).backward()
            optimizer.step()
    return net.eval()
