"""Two distillation fits in a row on two gloo ranks, each of which writes what it saw into the folder given."""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten.distillation.module import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
SAMPLES, CLASSES = 24, 3


class Net(nn.Sequential):
    def __init__(self, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, CLASSES)
        )


class Watched(DistillationModule):
    """Notes what DDP wraps, and poisons one rank's loss where the case asks for it."""

    poison = False

    def on_train_start(self) -> None:
        wrapped = self.trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        known = {id(p) for p in wrapped.module.parameters()} | {id(b) for b in wrapped.module.buffers()}
        outside = [*self.teacher.module.parameters(), *self.teacher.module.buffers()]
        self.seen = {
            "synced": sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
            "broadcast": sorted(n for n, _ in wrapped.module.named_buffers()),
            "teacher_inside": any(id(t) in known for t in outside),
        }

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.poison and self.global_step == 1 and self.global_rank == 1:
            return loss * float("inf")
        return loss


def sharded(rank: int, world: int, batch_size: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(SAMPLES, 1, 4, 4, generator=draw), torch.arange(SAMPLES) % CLASSES)
    return DataLoader(Subset(data, range(rank, SAMPLES, world)), batch_size)


def fit(folder: Path, *, poison: bool) -> None:
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 1}
    trainer = make_trainer(folder=folder, stage="student", settings=settings)
    rank = trainer.global_rank
    teacher = Net(8, seed=1)
    before = fingerprint(teacher)
    module = Watched(Net(4, seed=2 + rank), teacher, optimizer=OptimizerSettings(lr=0.01))
    module.poison = poison
    told = None
    try:
        trainer.fit(module, sharded(rank, 2, 4), sharded(rank, 2, 5))
    except UserError as error:
        told = str(error)
    weights = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    found = {
        **module.seen,
        "told": told,
        "weights": hashlib.sha256(weights).hexdigest(),
        "teacher_changed": fingerprint(teacher) != before,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(Path(sys.argv[1]) / "plain", poison=False)
    fit(Path(sys.argv[1]) / "poison", poison=True)
