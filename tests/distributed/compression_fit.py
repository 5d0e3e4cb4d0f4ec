"""Fits on two gloo ranks that prune and quantize; each rank writes what it ended with into the folder given."""

import hashlib
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lighten import DistillationModule, Prune, Quantize
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
SAMPLES, CLASSES = 96, 3


class Net(nn.Sequential):
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * 4, CLASSES),
        )  # fmt: skip


class Drift(L.Callback):
    """Gives rank 1 another plan, as if its weights had gone their own way."""

    def __init__(self, prune: Prune) -> None:
        self.prune = prune

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == 12 and trainer.global_rank == 1:
            pruner = self.prune._fitted
            pruner.plan = replace(pruner.plan, cuts=pruner.plan.cuts[:1])


class Watch(L.Callback):
    """Notes the hash of the masked weights after every step."""

    def __init__(self) -> None:
        self.hashes: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        masks = b"".join((p != 0).numpy().tobytes() for p in pl_module.student.parameters())
        self.hashes.append(hashlib.sha256(masks).hexdigest())


def sharded(rank: int) -> DataLoader:
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(SAMPLES, 1, 4, 4, generator=draw)
    data = TensorDataset(images, (images.mean((1, 2, 3)) * 20).long() % CLASSES)
    return DataLoader(Subset(data, range(rank, SAMPLES, 2)), 4)


def fit(folder: Path, *, reverse: bool = False, drift: bool = False, **pruning: Any) -> None:
    prune, quantize = Prune(**{"amount": 0.5, "begin": 0.2, "end": 0.6} | pruning), Quantize(begin=0.7)
    callbacks = [prune, quantize][:: -1 if reverse else 1] + ([Drift(prune)] if drift else [])
    callbacks.append(watch := Watch())
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 1,
        "gradient_clip_val": 1.0, "enable_progress_bar": False,
    }  # fmt: skip
    trainer = make_trainer(folder=folder, stage="student", settings=settings, callbacks=callbacks)
    rank = trainer.global_rank
    module = DistillationModule(Net(2 + rank), Net(1), optimizer=OptimizerSettings("sgd", lr=0.05))
    told = None
    try:
        trainer.fit(module, sharded(rank), sharded(rank))
    except RuntimeError as error:
        told = f"{trainer.global_step} {error}"
    state = b"".join(t.detach().numpy().tobytes() for t in module.student.state_dict().values())
    quantizers = quantizers_of(module.student)
    found = {
        "told": told,
        "state": hashlib.sha256(state).hexdigest(),
        "plan": prune.plan.hash,
        "hashes": watch.hashes,
        "saved": prune.plan.saved["macs"],
        "sparsity": prune.plan.sparsity,
        "ranges": [quantizers.low.tolist(), quantizers.high.tolist()],
        "scales": quantizers.parameters_of,  # DDP broadcasts buffers, but not what was computed from them
        "dead": int((module.student[0].weight == 0).flatten(1).all(1).sum()),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    fit(home / "straight")
    fit(home / "reverse", reverse=True)
    fit(home / "drift", drift=True)
    fit(home / "taylor", score="taylor", scope="global")
    fit(home / "sensitivity", score="auto", scope="sensitivity", target="macs", schedule="linear")
    fit(home / "soft", score="mix", soft=True)
