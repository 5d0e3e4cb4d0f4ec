"""Pictures of rectangles, light or dark, and small networks that find them."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SIDE, MOST, CLASSES = 32, 3, 2


def rectangles(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (samples, 1, 32, 32) and labels (samples, 3, 5): none to three rectangles, class 0 dark, 1 light."""
    g = torch.Generator().manual_seed(seed)
    pictures, labels = 0.1 * torch.randn(samples, 1, SIDE, SIDE, generator=g), torch.zeros(samples, MOST, 5)
    labels[..., 0] = -1
    for i in range(samples):
        for j in range(int(torch.randint(0, MOST + 1, (), generator=g))):
            w, h = torch.randint(6, 15, (2,), generator=g).tolist()
            x, y = (int(torch.randint(0, SIDE - s + 1, (), generator=g)) for s in (w, h))
            kind = int(torch.randint(0, CLASSES, (), generator=g))
            pictures[i, 0, y : y + h, x : x + w] = 2.0 * kind - 1
            labels[i, j] = torch.tensor([kind, (x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE])
    return pictures, labels


def loader(samples: int = 64, batch_size: int = 16, seed: int = 0) -> DataLoader:
    return DataLoader(TensorDataset(*rectangles(samples, seed)), batch_size)


class Points(nn.Module):
    """One stage: a box and logits at each point of a grid, 8 by 8 or coarser."""

    def __init__(self, width: int = 16, stride: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                *(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, stride=stride // 2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            )
            self.head = nn.Conv2d(width, 4 + CLASSES, 1)
        nn.init.zeros_(self.head.weight[:4])
        with torch.no_grad():
            self.head.bias[:] = torch.tensor([0.0, 0, 0, 0, *[-3.0] * CLASSES])
        side = SIDE // stride
        middle = (torch.arange(side) + 0.5) / side
        self.register_buffer("grid", torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).flatten(0, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.head(self.body(pictures)).flatten(2).transpose(1, 2)
        centre, size = self.grid + 0.25 * found[..., :2], 0.25 * found[..., 2:4].exp()
        return torch.cat([centre, size, found[..., 4:]], -1)


class Queries(nn.Module):
    """A set: as many answers as queries, whatever the picture."""

    def __init__(self, queries: int = 6, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(16 * 64, width), nn.ReLU()),
            )
            self.head = nn.Linear(width, queries * (4 + CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.head(self.body(pictures)).view(len(pictures), -1, 4 + CLASSES)
        return torch.cat([found[..., :4].sigmoid(), found[..., 4:] - 2], -1)
