"""Distillation whose losses couple samples or count tokens, on one or two gloo ranks, or sharded by FSDP2."""

import json
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from lighten import DistillationModule
from lighten.distillation.teacher import fingerprint
from lighten.training.fit import leave_processes

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="The `srun` command is available")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*(does not have many workers|have no `val_dataloader`)")
warnings.filterwarnings("ignore", message=".*deprecat", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nothing is changed in place here
warnings.filterwarnings("ignore", message=".*may not have complete support on cpu device mesh")
SAMPLES, BATCH, LENGTH = 32, 8, 6
CASES = {
    "classes": dict.fromkeys(["dist", "soft_labels", "cross_entropy", "hidden_cosine", "hint", "relations"], 1.0),
    "tokens": {"soft_labels": 5.0, "cross_entropy": 2.0, "hidden_cosine": 1.0},
    "stages": {"hint": {"from": 1.0, "to": 0.0, "shape": "one_shot", "begin": 0.5, "end": 0.5},
               "soft_labels": {"from": 0.0, "to": 1.0, "shape": "one_shot", "begin": 0.5, "end": 0.5}},
}  # fmt: skip


def build(case: str, layers: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=8 if (case, layers) == ("stages", 1) else 16, num_attention_heads=4,
        intermediate_size=32, vocab_size=50, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return (BertForMaskedLM if case == "tokens" else BertForSequenceClassification)(config).double()


def loader(case: str, rank: int, ranks: int) -> DataLoader:
    draw, rows = torch.Generator().manual_seed(5), []
    for i in range(SAMPLES):
        mask = (torch.arange(LENGTH) < 2 + i % 5).long()
        ids = torch.randint(1, 50, (LENGTH,), generator=draw) * mask
        labels = (
            i % 4
            if case != "tokens"
            else torch.where((torch.rand(LENGTH, generator=draw) < 0.4) & (mask > 0), ids, -100)
        )
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return DataLoader(Subset(rows, [i for i in range(SAMPLES) if i % ranks == rank]), BATCH // ranks)


class Watched(DistillationModule):
    def on_train_start(self) -> None:
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        return loss


def fit(folder: Path, case: str, ranks: int, kind: str) -> None:
    sharded = kind == "fsdp2"
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp"
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=ranks, strategy=strategy if ranks > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    teacher = build(case, 2, seed=1)
    before, student = fingerprint(teacher), build(case, 1, seed=2)
    module = Watched(
        student, teacher, task="masked_lm" if case == "tokens" else "classification", losses=CASES[case],
        temperature=2.0, shard_teacher=sharded and case != "classes",
        loss_options={"relations": {"heads": 4}} if case == "classes" else None,
        optimizer=lambda m, steps: torch.optim.SGD(m.parameters(), lr=0.002),
    )  # fmt: skip
    trainer.fit(module, loader(case, trainer.global_rank, ranks))
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.named_parameters()}
    taught = {name: getattr(p, "full_tensor", None) for name, p in teacher.named_parameters()}
    changed = fingerprint(teacher) != before
    if trainer.is_global_zero:
        found = {
            "losses": module.losses,
            "weights": {name: p.detach().flatten().tolist() for name, p in whole.items()},
            "teacher_changed": changed,
            "sharded": [name for name, p in module.named_parameters() if hasattr(p, "full_tensor")],
            "teacher_whole": [name for name, shards in taught.items() if shards is None],
            "teacher_sharded": [name for name, shards in taught.items() if shards is not None],
        }
        (folder / f"{case}-{kind}.json").write_text(json.dumps(found))


def fit_from_nothing(folder: Path) -> None:
    """The student is built on the meta device and gets its weights shard by shard; the teacher keeps its own."""
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    before = fingerprint(teacher)
    with torch.device("meta"):
        student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    sgd = lambda m, steps: torch.optim.SGD(m.parameters(), lr=0.05)  # noqa: E731
    module = Watched(student, teacher, optimizer=sgd)
    rows = [(torch.randn(6), i % 3) for i in range(8)]
    trainer.fit(module, DataLoader(rows[trainer.global_rank :: 2], 2))
    whole = {name: p.full_tensor() for name, p in module.named_parameters()}
    if trainer.is_global_zero:
        found = {
            "teacher_changed": fingerprint(teacher) != before,
            "finite": all(bool(p.isfinite().all()) for p in whole.values()),
            "shapes": {name: list(p.shape) for name, p in whole.items()},
        }
        (folder / "meta.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[3] == "fsdp2":
        fit_from_nothing(Path(sys.argv[1]))
    for case in CASES:
        fit(Path(sys.argv[1]), case, int(sys.argv[2]), sys.argv[3])
    leave_processes()
