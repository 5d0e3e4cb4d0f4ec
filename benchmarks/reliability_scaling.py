"""What more processes cost: ``python benchmarks/reliability.py scaling [--count STEPS] [--rounds N]``.

The fit of ``recipe=distil_cnn``'s sizes, distilled, pruned and through int8, on 1 and on 2 gloo processes, each with
its own batch (weak scaling); then the shrunk student, distilled on. Bytes all-reduced are counted where they are sent:
in DDP's buckets (gradients) and in the fit's own reductions (ranges, agreements). A plan update lasts from the decision
on rank zero until all masks lie.

Processes are forks, threads per process are given; the fits take turns, several rounds.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
import traceback
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lighten import DistillationModule, Prune, Quantize, build_data, build_model, shrink
from lighten.pruning.updates import MAX_UPDATES
from lighten.training.fit import leave_processes, make_trainer
from lighten.training.optimizer import OptimizerSettings

WARM_UP = 5
WHOLE, SMALL = "whole", "shrunk"
Found = dict[str, Any]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py scaling")
    parser.add_argument("--count", type=int, default=60, help="steps of a fit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="of each process")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    arguments = parser.parse_args(argv)
    found: dict[int, list[Found]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for world, rounds in found.items():
            rounds.append(_run(world, arguments))
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(
        f"{arguments.threads} thread(s) a process, batch {arguments.batch} each, {arguments.count} steps, "
        f"{arguments.rounds} round(s); {cores} cores, shared with all else that runs (load {load:.1f})\n"
    )
    print(
        "| student | processes | a step, median | of it computing | samples/s | efficiency | by computing alone "
        "| gradients all-reduced | other |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for kind in (WHOLE, SMALL):
        steps, busy = (
            {world: statistics.median(s for f in fits for s in f[kind][what]) for world, fits in found.items()}
            for what in ("steps", "busy")
        )
        for world, rounds in found.items():
            counts = rounds[0][kind]
            print(
                f"| {kind}, {counts['parameters']:,} parameters | {world} | {1e3 * steps[world]:.1f} ms "
                f"| {1e3 * busy[world]:.1f} ms "
                f"| {world * arguments.batch / steps[world]:,.0f} | {steps[1] / steps[world]:.0%} "
                f"| {busy[1] / busy[world]:.0%} "
                f"| {counts['gradients']:,} bytes a step | {counts['others']:,.0f} bytes a step |"
            )
    print("\n| plan update | processes | median | longest | share of 1,000 steps | plan sent |")
    print("|---|---:|---:|---:|---:|---:|")
    for world, rounds in found.items():
        updates = [seconds for f in rounds for seconds in f["updates"]]
        step = statistics.median(s for f in rounds for s in f[WHOLE]["steps"])
        share = MAX_UPDATES * statistics.median(updates) / (1000 * step)
        print(
            f"| at most {MAX_UPDATES} a fit | {world} | {1e3 * statistics.median(updates):.1f} ms "
            f"| {1e3 * max(updates):.1f} ms | {share:.2%} | {rounds[0]['plan'] if world > 1 else 0:,} bytes |"
        )
    sent = {kind: found[2][0][kind] for kind in (WHOLE, SMALL)}
    wrong = [kind for kind, counts in sent.items() if counts["gradients"] != 4 * counts["parameters"]]
    print(
        f"\nShrinking sends {sent[SMALL]['gradients'] / sent[WHOLE]['gradients']:.1%} of the bytes; "
        + (f"not 4 bytes a parameter: {', '.join(wrong)}" if wrong else "4 bytes a parameter each step, both times")
    )
    return int(bool(wrong) or sent[SMALL]["gradients"] >= sent[WHOLE]["gradients"])


class Timed(Prune):
    """Notes how long updates of the plan take, from decision to masks."""

    seconds: list[float]

    def _update_to(self, trainer: L.Trainer, due: int) -> None:
        before, begun = self._updated, time.perf_counter()
        super()._update_to(trainer, due)
        if self._updated != before:
            self.seconds.append(time.perf_counter() - begun)


class Meter(L.Callback):
    """Notes how long steps take and how many bytes are all-reduced."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.busy: list[float] = []
        self.gradients = self.others = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reduce gradients as DDP does, and count them."""
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, self._reduce)

    def _reduce(self, state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.gradients += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time."""
        self.begins.append(time.perf_counter())
        self.busy.append(time.process_time())

    def found(self, student: torch.nn.Module) -> Found:
        """Return seconds of steps, and bytes a step."""
        parameters = sum(p.numel() for p in student.parameters())
        count = len(self.begins)
        return {
            "steps": _gaps(self.begins), "busy": _gaps(self.busy), "parameters": parameters,
            "gradients": self.gradients // count,
            "others": (self.others - self.gradients) / count,
        }  # fmt: skip


def _gaps(moments: list[float]) -> list[float]:
    return [end - begin for begin, end in pairwise(moments)][WARM_UP:]


def _run(world: int, arguments: argparse.Namespace) -> Found:
    """Return what rank zero of ``world`` forks found."""
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for rank in range(world):
            pid = os.fork()
            if not pid:
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        found = _fits(Path(folder), world, rank, arguments)
                        leave_processes()
                    if rank == 0:
                        (Path(folder) / "found.json").write_text(json.dumps(found))
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            pids.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(statuses):
            raise RuntimeError(f"a fit on {world} processes failed")
        return dict(json.loads((Path(folder) / "found.json").read_text()))


def _fits(folder: Path, world: int, rank: int, arguments: argparse.Namespace) -> Found:
    own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= own | {"MASTER_PORT": str(29500 + os.getppid() % 1000), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    data = build_data("fashion_mnist", batch_size=arguments.batch, seed=0)
    shape = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": 2}
    torch.manual_seed(0)
    student, teacher = (
        build_model("resnet20", width=width, blocks=blocks, **shape).to(memory_format=torch.channels_last)
        for width, blocks in ((32, 1), (40, 2))
    )
    prune = Timed(0.5, begin=0.1, end=0.6)
    prune.seconds = []
    meter = _fit(folder / WHOLE, student, teacher, data, [prune, Quantize(begin=0.3)], world, arguments)
    assert prune.plan is not None
    whole, small = meter.found(student), shrink(student, prune.plan)
    return {
        WHOLE: whole, "updates": prune.seconds, "plan": len(prune.plan.to_json()),
        SMALL: _fit(folder / SMALL, small, teacher, data, [], world, arguments).found(small),
    }  # fmt: skip


def _fit(
    folder: Path, student: Any, teacher: Any, data: Any, callbacks: list[L.Callback], world: int,
    arguments: argparse.Namespace,
) -> Meter:  # fmt: skip
    meter = Meter()
    settings = {
        "max_epochs": -1, "max_steps": arguments.count, "accelerator": "cpu", "devices": world,
        "strategy": "ddp" if world > 1 else "auto", "enable_progress_bar": False, "gradient_clip_val": 1.0,
        "enable_checkpointing": False, "limit_val_batches": 0,
    }  # fmt: skip
    trainer = make_trainer(
        folder=folder, stage="student", settings=settings, callbacks=[*callbacks, meter], monitor=None
    )
    reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        meter.others += tensor.nbytes
        return reduce(tensor, *args, **kwargs)

    module = DistillationModule(student, teacher.eval(), num_classes=10, optimizer=OptimizerSettings("sgd", lr=0.01))
    dist.all_reduce = counted
    try:
        trainer.fit(module, datamodule=data)
    finally:
        dist.all_reduce = reduce
    return meter
