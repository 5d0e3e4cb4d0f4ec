"""Quantization-aware fits on one or two gloo ranks with one global batch; rank zero writes what it ended with."""

import json
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import Quantize
from lighten.quantization.activation_quantizers import quantizers_of

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*does not have many workers")
SAMPLES, BATCH = 64, 16


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.GELU(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Watch(L.Callback):
    """Keeps the ranges after each step."""

    def __init__(self) -> None:
        self.ranges: list[list[list[float]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        quantizers = quantizers_of(pl_module)
        self.ranges.append([quantizers.low.tolist(), quantizers.high.tolist()])


def loader(rank: int, ranks: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES, 1, 4, 4, generator=draw).double()
    labels = (images.mean((1, 2, 3)) * 20).long() % 3
    mine = [i for i in range(SAMPLES) if i % ranks == rank]
    return DataLoader(Subset(TensorDataset(images, labels), mine), BATCH // ranks)


def fit(folder: Path, ranges: str, ranks: int) -> None:
    watch = Watch()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False,
        callbacks=[Quantize(begin=0.0, freeze=0.8, ranges=ranges), watch], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    # in float64, as the last bits of a convolution in float32 depend on how many samples a process has
    module = Plain().double()
    trainer.fit(module, loader(trainer.global_rank, ranks))
    if trainer.is_global_zero:
        weights = {name: p.flatten().tolist() for name, p in module.named_parameters()}
        (folder / f"{ranges}-{ranks}.json").write_text(json.dumps({"weights": weights, "ranges": watch.ranges}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for rule in ("moving_average", "mse", "lsq"):
        fit(Path(sys.argv[1]), rule, int(sys.argv[2]))
