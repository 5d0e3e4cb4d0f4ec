"""Quantization-aware distillation sharded by FSDP2 over two gloo ranks, beside the same fit under DDP; refusals."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import DistillationModule, Prune, Quantize
from lighten.errors import UserError
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.insert import quantize_
from lighten.quantization.integer_layers import convert
from lighten.training.fit import leave_processes

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*(does not have many workers|have no `val_dataloader`)")
warnings.filterwarnings("ignore", message=".*may not have complete support on cpu device mesh")
warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nothing is changed in place here
warnings.filterwarnings("ignore", message=".*deprecat", category=FutureWarning)
SAMPLES, BATCH, CLASSES = 64, 16, 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + x)


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm, self.relu = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.layers = nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(1))


def sgd(module: nn.Module, steps: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.02)


class Watched(DistillationModule):
    losses: list[float]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        return loss


def loader(rank: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES, 1, 4, 4, generator=draw, dtype=torch.float64)
    data = TensorDataset(images, (images.mean((1, 2, 3)) * 20).long() % CLASSES)
    return DataLoader(Subset(data, range(rank, SAMPLES, 2)), BATCH // 2)


def trainer_of(kind: str, callbacks: list[L.Callback], epochs: int = 3) -> L.Trainer:
    sharded = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy=sharded if kind == "fsdp2" else "ddp", logger=False,
        callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip


def fit(folder: Path, kind: str, ranges: str) -> None:
    trainer = trainer_of(kind, [Quantize(begin=0.5, freeze=0.9, ranges=ranges)])
    module = Watched(Net(2).double(), Net(1).double(), optimizer=sgd)
    module.losses = []
    if kind == "fsdp2":  # as recipes build their models; shards have their channels first again
        module.student.to(memory_format=torch.channels_last)
    data = loader(trainer.global_rank)
    trainer.fit(module, data)
    path = folder / f"{kind}-{ranges}.ckpt"
    trainer.save_checkpoint(path)
    sharded = sum(hasattr(p, "full_tensor") for p in module.student.parameters())
    student = module.student.eval()
    images = torch.stack([image for image, _ in data.dataset])
    with torch.no_grad():
        logits = student(images)
    quantizers = quantizers_of(student)
    found = {
        "losses": module.losses, "ranges": [quantizers.low.tolist(), quantizers.high.tolist()],
        "stage": int(quantizers.stage), "places": quantizers.names, "logits": logits.tolist(),
        "whole": sum(1 for _ in student.parameters()) - sharded,
        "statistics": {n: b.tolist() for n, b in student.named_buffers() if "running" in n},
    }  # fmt: skip
    if trainer.is_global_zero:  # what one process makes of the file
        state = torch.load(path, weights_only=True)["state_dict"]
        whole = quantize_(Net(3).double(), example_input=images[:2], ranges=ranges)
        whole.load_state_dict({n.removeprefix("student."): t for n, t in state.items()})
        with torch.no_grad():
            found["loaded"] = whole.eval()(images).tolist()
            small = whole.float()
            found["exported"] = torch.equal(convert(small)(images.float()), small(images.float()))
    (folder / f"{kind}-{ranges}-{trainer.global_rank}.json").write_text(json.dumps(found))


def fit_from_nothing(folder: Path) -> None:
    """The student is built on the meta device, quantized there, and gets its weights shard by shard."""
    trainer = trainer_of("fsdp2", [Quantize(begin=0.0, freeze=0.9)], epochs=1)
    with torch.device("meta"):
        student = Net(2).double()
    module = Watched(student, Net(1).double(), optimizer=sgd)
    module.losses = []
    trainer.fit(module, loader(trainer.global_rank))
    quantizers = quantizers_of(module.student)
    found = {
        "losses": module.losses,
        "ranges": [quantizers.low.tolist(), quantizers.high.tolist()],
        "places": quantizers.names,
    }
    (folder / f"meta-{trainer.global_rank}.json").write_text(json.dumps(found))


class Parted(Watched):
    """Shards every layer for itself."""

    def configure_model(self) -> None:
        for part in [*self.student.modules()][:0:-1]:
            if any(True for _ in part.parameters(recurse=False)):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def be_refused(folder: Path) -> None:
    for name, callback, kind in (("prune", Prune(0.5), Watched), ("parted", Quantize(begin=0.5), Parted)):
        trainer = trainer_of("fsdp2", [callback])
        module = kind(Net(2).double(), Net(1).double())
        module.losses, told = [], None
        try:
            trainer.fit(module, loader(trainer.global_rank))
        except UserError as error:
            told = str(error)
        found = {"told": told, "steps": len(module.losses)}
        (folder / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    for kind in ("ddp", "fsdp2"):
        for ranges in ("moving_average", "lsq"):
            fit(home, kind, ranges)
    fit_from_nothing(home)
    be_refused(home)
    leave_processes()
