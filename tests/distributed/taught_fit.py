"""Fits of somebody's own module with ``Distill``, on one process or two: DDP, or shards of FSDP2; a refusal."""

import json
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import Distill
from lighten.distillation.teacher import fingerprint
from lighten.errors import UserError
from lighten.training.fit import leave_processes

SAMPLES, BATCH, CLASSES = 32, 8, 3


def net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, CLASSES)).double()


class Own(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(4, seed=2)

    def loss(self, batch) -> torch.Tensor:
        return (self.net(batch[0]) - batch[0][:, :CLASSES]).square().mean()

    def training_step(self, batch, index):
        return self.loss(batch)

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class ByHand(Own):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


CASES = {
    "automatic": (Own, {}, {}),
    "by hand": (ByHand, {}, {}),
    "accumulated": (Own, {}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    "projected": (Own, {"losses": {"soft_labels": 1.0, "hint": 0.5}, "layers": {"0": "0"}}, {}),
}


def loader(rank: int, ranks: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(SAMPLES, 6, generator=draw, dtype=torch.float64)
    return DataLoader(Subset(TensorDataset(inputs), range(rank, SAMPLES, ranks)), BATCH // ranks)


def fit(folder: Path, case: str, ranks: int, kind: str) -> None:
    build, settings, trains = CASES[case]
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=ranks, strategy={"fsdp2": sharded, "ddp": "ddp"}.get(kind, "auto"),
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, log_every_n_steps=1,
        callbacks=[distill := Distill(net(8, seed=1), **settings)], **trains,
    )  # fmt: skip
    before, module, told = fingerprint(distill.teacher.module), build(), None
    torch.manual_seed(9 + trainer.global_rank)  # projections of other numbers
    try:
        trainer.fit(module, loader(trainer.global_rank, ranks))
    except UserError as error:
        told = str(error)
    weights = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.named_parameters()}
    projections = {} if told else dict(distill._projections.named_parameters())
    inside = {id(p) for p in trainer.strategy.model.parameters()}
    found = {
        "told": told,
        "weights": {name: p.detach().flatten().tolist() for name, p in (weights | projections).items()},
        "sharded": all(hasattr(p, "full_tensor") for p in module.parameters()),
        "outside": not inside & {id(p) for p in distill.teacher.module.parameters()},
        "teacher_changed": fingerprint(distill.teacher.module) != before,
        "logged": sorted(name for name in trainer.callback_metrics if name.startswith("distil/")),
    }
    (folder / f"{case}-{kind}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*deprecat", category=FutureWarning)
    torch.set_num_threads(1)
    for kind in ("ddp", "fsdp2"):
        for case in CASES:
            fit(Path(sys.argv[1]), case, 2, kind)
    leave_processes()
