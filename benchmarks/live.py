"""Pruning by cuts while training: ``python benchmarks/live.py [fits cut wire accuracy] [--epochs 2] [--seeds 0 1 2]``.

``fits``: whole fits that take turns batch by batch, each in a process of its own: unpruned, with masks, with cuts. Half
of all widths go from 0.1 to 0.5 of the fit. A turn holds all that happens between two batches, the cuts among it. The
student is ResNet-20 of width 16 at 28×28 (batch 128, labels alone), the encoder MiniLM (heads and feed-forward, 32
tokens, batch 64). ``accuracy``: the same fits of the student alone, by seeds. ``cut``: what one cut of ResNet-50 at
224×224 takes, in seconds and in memory beside the network's own. ``wire``: bytes that two processes send each other in
a step, as their network interface counts them, in a network namespace of their own (root).
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from rows import Row, add_row, command, width
from step_cost import TakeTurns, Turn, in_turn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighten import DistillationModule, Plan, Prune, build_data, build_model, plan_pruning
from lighten.pruning.live_cut import cut_live_, prove_cut_
from lighten.pruning.mask import mask_
from lighten.training.fit import make_trainer
from lighten.training.optimizer import OptimizerSettings
from lighten.utils.machine import processor

DENSE, MASKS, CUTS = "unpruned", "masks", "cuts"
AMOUNT, BEGIN, END = 0.5, 0.1, 0.5


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["fits", "cut", "wire", "accuracy"])
    parser.add_argument("--networks", nargs="+", default=["student", "encoder"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=float, default=1.0, help="of each epoch")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    parser.add_argument("--ranks", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cut", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cut:
        _cut(arguments)
        return
    if arguments.ranks:
        _two_ranks()
        return
    print(f"{processor()}, {arguments.threads} thread(s) a process, load {os.getloadavg()[0]:.1f}")
    for part in arguments.parts:
        PARTS[part](arguments)


def fits(arguments: argparse.Namespace) -> None:
    """Print the time of whole fits, and of steps at their ends."""
    for network in arguments.networks:
        arguments.network = network
        times = in_turn(_job, [DENSE, MASKS, CUTS], arguments)
        print(f"\n{network}, {len(times[DENSE])} steps\n")
        print("| fit | whole fit | against masks | against unpruned | last step |")
        print("|---|---:|---:|---:|---:|")
        totals = {name: sum(values) for name, values in times.items()}
        for name, values in times.items():
            last = statistics.median(values[-len(values) // 4 :])
            against = [f"{totals[other] / totals[name]:.2f}×" for other in (MASKS, DENSE)]
            print(f"| {name} | {totals[name]:.1f} s | {' | '.join(against)} | {1e3 * last:.0f} ms |")
        peers = {name: totals[name] for name in (DENSE, MASKS)}
        lasts = {name: 1e3 * statistics.median(values[-len(values) // 4 :]) for name, values in times.items()}
        wide = {name: 1e3 * width(values[-len(values) // 4 :]) for name, values in times.items()}
        wide["lighten"] = wide.pop(CUTS)
        claim = f"fit of the {network} that prunes by cuts, {len(times[DENSE])} steps"
        add_row(arguments.json, Row("live", f"{claim}: all of it", "s", totals[CUTS], peers, command=command()))
        ours = lasts.pop(CUTS)
        add_row(arguments.json, Row("live", f"{claim}: a step at its end", "ms", ours, lasts, wide, command=command()))


def accuracy(arguments: argparse.Namespace) -> None:
    """Print what the student's fits come to."""
    print("\n| seed | masks | cuts |\n|---|---:|---:|")
    found: dict[str, list[float]] = {MASKS: [], CUTS: []}
    for seed in arguments.seeds:
        for name in found:
            found[name].append(100 * _fit(name, "student", arguments, seed, [])["accuracy"])
        print(f"| {seed} | {found[MASKS][-1]:.2f} % | {found[CUTS][-1]:.2f} % |")
    print("| mean | " + " | ".join(f"{statistics.mean(values):.2f} %" for values in found.values()) + " |")


def cut(arguments: argparse.Namespace) -> None:
    """Print what a cut of ResNet-50 takes, in a process in which nothing was planned: plans leave memory behind."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        plan.write_text(plan_pruning(_resnet50(), torch.randn(1, 3, 224, 224), AMOUNT).to_json())
        words = [sys.executable, __file__, "--cut", str(plan), "--threads", str(arguments.threads)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout or done.stderr[-2000:])


def _cut(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    plan = Plan.from_json(arguments.cut.read_text())
    size = lambda m: sum(t.nbytes for t in (*m.parameters(), *m.buffers()))  # noqa: E731
    alone, model = _resnet50(), _resnet50()
    for each in (alone, model):
        mask_(each, plan)
    begun = time.perf_counter()
    cut_live_(alone, plan)
    without, before = time.perf_counter() - begun, size(model)
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 224, 224))  # what a forward of the fit takes is there already
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    peak, begun = _peak(), time.perf_counter()
    prove_cut_(model, plan)
    whole, grown = time.perf_counter() - begun, _peak() - peak
    print(
        f"\nResNet-50, {before / 1e6:.0f} -> {size(model) / 1e6:.0f} MB: a cut with its proof {whole:.2f} s, without "
        f"{without:.2f} s; the process's peak grew by {grown / 1e6:.0f} MB, {(before + grown) / before:.2f}x of the "
        "network's"
    )


def _resnet50() -> nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    model: nn.Module = hf.ResNetForImageClassification(hf.ResNetConfig())
    return model


def _peak() -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def wire(arguments: argparse.Namespace) -> None:
    """Print the bytes that two processes send each other in a step."""
    words = f"ip link set lo up && exec {sys.executable} {Path(__file__).resolve()} --ranks"
    made = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", words], env={**made, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    print(done.stdout or done.stderr[-2000:])


PARTS = {"fits": fits, "cut": cut, "wire": wire, "accuracy": accuracy}


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    turn = Turn(mine, following)
    _fit(name, arguments.network, arguments, 0, [TakeTurns(turn)], validate=False)
    turn.leave()
    answers.put((name, turn.times))


def _fit(
    name: str,
    network: str,
    arguments: argparse.Namespace,
    seed: int,
    callbacks: list[L.Callback],
    *,
    validate: bool = True,
) -> dict[str, float]:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    L.seed_everything(seed, verbose=False)
    if network == "student":
        data: Any = build_data("fashion_mnist", batch_size=128, seed=seed)
        model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=16)
        options, exclude = OptimizerSettings("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4), []
    else:
        data = build_data("wordnet_glosses", batch_size=64, seed=seed, max_length=32, tokenizer="minilm")
        shape = data.input_shape
        model = build_model("transformers", num_classes=data.num_classes, input_shape=shape, path="minilm")
        options, exclude = OptimizerSettings("adamw", lr=2e-4), ["*embeddings*"]
    score = "fpgm" if network == "student" else "magnitude"
    pruned = Prune(AMOUNT, begin=BEGIN, end=END, score=score, exclude=exclude, live=name == CUTS)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        module = DistillationModule(
            model.to(memory_format=torch.channels_last) if network == "student" else model, None, soft_weight=0.0,
            num_classes=data.num_classes, optimizer=options,
        )  # fmt: skip
        settings = {
            "max_epochs": arguments.epochs, "precision": "32-true", "accelerator": "cpu", "enable_progress_bar": False,
            "enable_checkpointing": False, "limit_val_batches": 0, "gradient_clip_val": 1.0,
            "limit_train_batches": arguments.batches if arguments.batches <= 1 else int(arguments.batches),
        }  # fmt: skip
        trainer = make_trainer(
            folder=folder, stage=name, settings=settings, callbacks=[*([] if name == DENSE else [pruned]), *callbacks],
            monitor=None,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        if not validate:
            return {}
        found = trainer.test(module, datamodule=data, verbose=False)[0]
    return {"accuracy": next(value for key, value in found.items() if key.endswith("accuracy"))}


class _Bytes(L.Callback):
    """Counts what the loopback interface has sent between two steps."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self._before = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self._before = _sent()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.sent.append(_sent() - self._before)


def _sent() -> int:
    line = next(row for row in Path("/proc/net/dev").read_text().splitlines() if row.strip().startswith("lo:"))
    return int(line.split()[9])


class _Images(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=32)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def _two_ranks() -> None:
    warnings.simplefilter("ignore")
    counted = _Bytes()
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(320, 1, 28, 28, generator=draw), torch.randint(0, 10, (320,), generator=draw))
    trainer = L.Trainer(
        max_epochs=2, devices=2, strategy="ddp", accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Prune(AMOUNT, begin=BEGIN, end=END, live=True, module="net"), counted],
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(_Images(), DataLoader(data, batch_size=16))
    if trainer.is_global_zero:
        first, last = statistics.median(counted.sent[1:3]), statistics.median(counted.sent[-5:])
        print(f"\nsent by both ranks in a step: {first / 1e6:.2f} -> {last / 1e6:.2f} MB, {last / first:.1%}")


if __name__ == "__main__":
    main()
