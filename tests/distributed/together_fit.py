"""Fits that distil, prune and quantize at once, on 1, 2 and 4 gloo ranks with one global batch.

Ranks are forks of this process, so that torch is imported once; four are two nodes of two. Each writes what it saw.
"""

import copy
import hashlib
import json
import os
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import DistillationModule, Prune, Quantize, shrink
from lighten.distillation import module as distillation_module
from lighten.errors import UserError
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.integer_layers import convert
from lighten.quantization.layers import FoldedNorm
from lighten.quantization.observe import RULES
from lighten.quantization.swap_class import born_as
from lighten.training.optimizer import OptimizerSettings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*(does not have many workers|have no `val_dataloader`)")
warnings.filterwarnings("ignore", message=".*tried to call self.log\\('global_step'")
warnings.filterwarnings("ignore", message=".*did not detect unused|.*find_unused_parameters=True was specified")
REFUSED: list[str] = []
SAMPLES, BATCH, CLASSES, EPOCHS = 64, 16, 3, 3
WORLDS = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""Ranks -> nodes, processes on each."""


class Net(nn.Sequential):
    def __init__(self, seed: int, *, norm: bool) -> None:
        torch.manual_seed(seed)
        norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(6)] if norm else [nn.Identity(), nn.Identity()]
        super().__init__(
            nn.Conv2d(1, 8, 3), norms[0], nn.ReLU(), nn.Conv2d(8, 6, 1), norms[1], nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * 4, CLASSES),
        )  # fmt: skip


class Summed(torch.autograd.Function):
    """The sum over ranks; each rank's loss is a mean over its own samples, so gradients add up as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        dist.all_reduce(grad := grads[0].clone())
        return grad


def synchronised(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What SyncBatchNorm computes on accelerators, on the CPU, where torch's refuses to."""
    if not norm.training or dist.get_world_size() == 1:
        return nn.modules.batchnorm._BatchNorm.forward(norm, x)
    dims, count = [0, *range(2, x.dim())], x.numel() // x.shape[1] * dist.get_world_size()
    mean, square = Summed.apply(torch.stack([x.sum(dims), x.square().sum(dims)])) / count
    variance = square - mean.square()
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    shape = (-1, *[1] * (x.dim() - 2))
    gain = norm.weight * torch.rsqrt(variance + norm.eps)
    return (x - mean.view(shape)) * gain.view(shape) + norm.bias.view(shape)


class Watched(DistillationModule):
    """Notes every optimizer step's loss, over all ranks and micro-batches."""

    losses: list[float]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        return loss


class Watch(L.Callback):
    """Notes plan, masks and ranges after every optimizer step."""

    def __init__(self, prune: Prune) -> None:
        self.prune = prune
        self.seen: list[dict[str, Any]] = []
        self.norms: set[str] = set()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.seen):
            return
        student, plan = pl_module.student, self.prune.plan
        quantizers = quantizers_of(student)
        zeros = b"".join((p == 0).numpy().tobytes() for p in student.parameters())
        self.norms |= {born_as(m).__name__ for m in student.modules() if isinstance(m, FoldedNorm)}
        self.seen.append({
            "plan": plan.to_json(), "masks": hashlib.sha256(zeros).hexdigest(), "stage": int(quantizers.stage),
            "ranges": [[x.hex() for x in bound.tolist()] for bound in (quantizers.low, quantizers.high)],
        })  # fmt: skip


def loader(rank: int, world: int, size: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES, 1, 4, 4, generator=draw, dtype=torch.float64)
    data = TensorDataset(images, (images.mean((1, 2, 3)) * 20).long() % CLASSES)
    blocks = (range(at + rank, at + BATCH, world) for at in range(0, SAMPLES, BATCH))
    return DataLoader(Subset(data, [i for block in blocks for i in block]), size)


def fit(
    folder: Path, world: int, *, norm: bool = False, accumulate: bool = False, ranges: str = "moving_average",
    single: bool = False, ddp: dict[str, bool] | None = None, **settings: Any,
) -> None:  # fmt: skip
    nodes, devices = WORLDS[world]
    prune = Prune(0.5, begin=0.1, end=0.5)
    watch = Watch(prune)
    size = 4 if accumulate else BATCH // world
    strategy = DDPStrategy(**(ddp or {})) if world > 1 else "auto"
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=devices, num_nodes=nodes, strategy=strategy, logger=False,
        callbacks=[prune, Quantize(begin=0.6, freeze=0.9, ranges=ranges), watch], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False, gradient_clip_val=1.0,
        accumulate_grad_batches=BATCH // size // world, **settings,
    )  # fmt: skip
    rank = trainer.global_rank
    student, teacher = Net(2 + rank, norm=norm), Net(1, norm=norm)
    module = Watched(student, teacher, optimizer=OptimizerSettings("sgd", lr=0.05, momentum=0.9))
    if not single:  # the last bits of a convolution in float32 depend on how many samples a process has
        module, student, teacher = module.double(), student.double(), teacher.double()
    module.losses = []
    data = loader(rank, world, size)
    if single:
        data = DataLoader([(x.float(), y) for x, y in data.dataset], size)
    trainer.fit(module, data)
    micro = len(module.losses) // len(watch.seen)
    losses = [sum(module.losses[i : i + micro]) / micro for i in range(0, len(module.losses), micro)]
    weights = b"".join(p.detach().numpy().tobytes() for p in module.student.parameters())
    small = shrink(module.student, prune.plan)
    whole, images = copy.deepcopy(module.student).float().eval(), torch.stack([x.float() for x, _ in data.dataset])
    with torch.no_grad():
        exported = torch.equal(whole(images), convert(whole)(images))
    found = {
        "refused": REFUSED, "exported": exported, "widths": [small[0].out_channels, small[3].out_channels],
        "losses": losses, "seen": watch.seen, "weights": hashlib.sha256(weights).hexdigest(),
        "norms": sorted(watch.norms), "sparsity": prune.plan.sparsity,
    }  # fmt: skip
    (folder / f"{world}-{rank}.json").write_text(json.dumps(found))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": True},
    "accumulate-histograms": {"accumulate": True, "ranges": "mse"},
    "histograms": {"ranges": "mse"},
    "sync": {"norm": True, "sync_batchnorm": True},
    "bf16": {"norm": True, "precision": "bf16-mixed", "single": True},
    "static-graph": {"ddp": {"static_graph": True, "gradient_as_bucket_view": True}},
    "unused": {"ddp": {"find_unused_parameters": True}},
}


def be_rank(folder: Path, world: int, rank: int) -> None:
    _, devices = WORLDS[world]
    os.environ |= {"NODE_RANK": str(rank // devices), "LOCAL_RANK": str(rank % devices), "WORLD_SIZE": str(world)}
    RULES["mse"] = replace(RULES["mse"], every=2)  # optimizer steps, so that four hold two looks
    if world == 2:
        try:
            fit(folder, world, norm=True, sync_batchnorm=True)
        except UserError as error:
            REFUSED.append(str(error))
    distillation_module.check_sync = lambda trainer: None
    nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign]
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # type: ignore[method-assign]
    for name, case in CASES.items():
        if "ddp" in case and world != 2:
            continue
        (folder / name).mkdir(exist_ok=True)
        fit(folder / name, world, **case)


def fork_ranks(folder: Path, world: int) -> bool:
    pids = []
    for rank in range(world):
        pid = os.fork()
        if not pid:
            try:
                be_rank(folder, world, rank)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    return not any(statuses)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for world, port in zip(WORLDS, sys.argv[2:], strict=True):
        os.environ["MASTER_PORT"] = port
        if not fork_ranks(Path(sys.argv[1]), world):
            sys.exit(1)
