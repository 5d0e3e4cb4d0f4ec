"""Fits on two gloo ranks that share a cache of the teacher's answers: straight, killed while it fills, resumed, again.

Ranks are forks of this process, which ends all when one dies, as launchers do.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lighten.data import build_data
from lighten.distillation.cache import TeacherCache
from lighten.distillation.module import DistillationModule
from lighten.models import build_model
from lighten.training.checkpoint import latest_good
from lighten.training.fit import leave_processes, make_trainer
from lighten.training.optimizer import OptimizerSettings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
EPOCHS, VIEWS, KILLED_AT = 4, 2, 10
SOURCE = build_data("fashion_mnist", batch_size=64, seed=3, validation=11000, views=VIEWS)
SOURCE.keyed = True


def mlp(seed: int, hidden: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("mlp", num_classes=10, input_shape=(1, 28, 28), hidden=[hidden])


class Counted(nn.Module):
    """A teacher that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.asked = mlp(1, 32), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return self.net(x)


class Torn(TeacherCache):
    """Rank 1 is killed when it has written half of a batch."""

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if self.doomed():
            super().write(keys[::2], values[::2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(keys, values)


class Asked(L.Callback):
    """Notes how often the teacher is asked in each epoch and right after it."""

    def __init__(self, teacher: Counted) -> None:
        self.teacher, self.totals = teacher, {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.totals[trainer.current_epoch] = self.teacher.asked

    def by_epoch(self) -> dict[int, int]:
        ends = [*self.totals.values(), self.teacher.asked][1:]
        return {epoch: end - begin for (epoch, begin), end in zip(self.totals.items(), ends, strict=True)}


def be_rank(folder: Path, cache: Path, rank: int, *, killed: bool) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    teacher, store = Counted(), (Torn if killed else TeacherCache)(cache)
    asked = Asked(teacher)
    settings = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False,
        "limit_val_batches": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = make_trainer(folder=folder, stage="student", settings=settings, callbacks=[asked], monitor=None)
    store.doomed = lambda: rank == 1 and trainer.global_step == KILLED_AT
    module = DistillationModule(
        mlp(2, 16), teacher, cache=store, num_classes=10, optimizer=OptimizerSettings(lr=0.01)
    )  # fmt: skip
    path = latest_good(folder / "checkpoints")
    trainer.fit(module, datamodule=SOURCE, ckpt_path=str(path) if path else None, weights_only=True)
    weights = b"".join(p.detach().numpy().tobytes() for p in module.student.parameters())
    found = {
        "weights": hashlib.sha256(weights).hexdigest(), "asked": asked.by_epoch(), "filled": store.filled,
        "resumed": path is not None, "steps": trainer.global_step,
    }  # fmt: skip
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    leave_processes()


def fork_ranks(folder: Path, cache: Path, port: str, *, killed: bool = False) -> list[int]:
    os.environ["MASTER_PORT"] = port
    pids = {}
    for rank in (0, 1):
        pid = os.fork()
        if not pid:
            try:
                be_rank(folder, cache, rank, killed=killed)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids[pid] = rank
    ended = [0, 0]
    while pids:
        pid, status = os.wait()
        ended[pids.pop(pid)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return ended


if __name__ == "__main__":
    torch.set_num_threads(1)
    SOURCE.setup("fit")  # once for all forks
    home, ports = Path(sys.argv[1]), sys.argv[2:]
    for name in ("straight", "killed", "again"):
        (home / name).mkdir()
    ended = {"straight": fork_ranks(home / "straight", home / "one", ports[0])}
    ended["killed"] = fork_ranks(home / "killed", home / "two", ports[1], killed=True)
    ended["resumed"] = fork_ranks(home / "killed", home / "two", ports[2])
    ended["again"] = fork_ranks(home / "again", home / "two", ports[3])
    (home / "ended.json").write_text(json.dumps(ended))
