"""Fits on gloo ranks that prune by cuts; each rank writes what it saw into the folder given."""

import gc
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import Prune
from lighten.training.fit import make_trainer

warnings.simplefilter("error")
for message in ("The `srun` command is available", ".*LeafSpec", ".*find_unused_parameters=True"):
    warnings.filterwarnings("ignore", message=message)
SAMPLES, CLASSES = 64, 3


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(12 * 4, CLASSES),
        )  # fmt: skip
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


class Watch(L.Callback):
    """Notes after every step a hash of all weights, the bytes in DDP's buckets, and how many wrappers there are."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.bytes: list[int] = []
        self.wrappers = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        weights = b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())
        self.hashes.append(hashlib.sha256(weights).hexdigest())
        model: Any = trainer.strategy.model
        sizes = model._get_ddp_logging_data()["bucket_sizes"]
        self.bytes.append(sum(map(int, sizes.split(","))))
        self.wrappers = max(self.wrappers, sum(type(x) is DistributedDataParallel for x in gc.get_objects()))


def data(rank: int, ranks: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES, 1, 4, 4, generator=draw).double()
    known = TensorDataset(images, (images.mean((1, 2, 3)) * 20).long() % CLASSES)
    return DataLoader(Subset(known, range(rank, SAMPLES, ranks)), 4)


def fit(
    folder: Path, ranks: int, *, live: bool = True, ckpt: Path | None = None, options: Any = None, **ddp: Any
) -> None:
    prune, watch = Prune(0.5, begin=0.1, end=0.7, live=live, cuts=2, module="net"), Watch()
    settings = {
        "max_epochs": 3, "accelerator": "cpu", "devices": ranks, "strategy": DDPStrategy(**ddp), "precision": "64-true",
        "enable_progress_bar": False, **(options or {}),
    }  # fmt: skip
    trainer = make_trainer(
        folder=folder / "fit", stage="student", settings=settings, callbacks=[prune, watch], monitor=None
    )
    rank, module = trainer.global_rank, Module()
    trainer.fit(module, data(rank, ranks), ckpt_path=ckpt, weights_only=True)
    assert prune.plan is not None
    found = {
        "hashes": watch.hashes, "bytes": watch.bytes, "wrappers": watch.wrappers, "plan": prune.plan.hash,
        "shape": list(module.net[0].weight.shape),
        "state": [t.flatten().tolist() for t in module.state_dict().values()],
    }  # fmt: skip
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    home, ranks, which = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if which == "wrappers":
        fit(home / "view", ranks, gradient_as_bucket_view=True)
        fit(home / "static", ranks, static_graph=True)
        fit(home / "unused", ranks, find_unused_parameters=True)
        fit(home / "small buckets", ranks, bucket_cap_mb=0.001)
    else:
        fit(home / "masks", ranks, live=False)
        fit(home / "cuts", ranks)
        fit(home / "accumulation", ranks, options={"accumulate_grad_batches": 3})
        fit(home / "accumulated masks", ranks, live=False, options={"accumulate_grad_batches": 3})
        last = next((home / "cuts" / "fit" / "checkpoints").glob("last-epoch=001*.ckpt"))
        fit(home / "resumed", ranks, ckpt=last)
