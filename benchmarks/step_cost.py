"""What compression costs while training: ``python benchmarks/step_cost.py [--precision bf16-mixed] [--batch 128]``.

Real fits run side by side, each in a thread of its own, and take turns batch by batch, so that what disturbs one
disturbs all: a student on labels alone; distilled; distilled with ``Prune`` and ``Quantize`` fully active; and between
them the teacher's forward by itself. A step lasts from the moment a fit has the turn until it asks for the next one:
data, forward, backward, optimizer, logging, every callback. The price is the last fit's step over the plain step plus
the teacher's forward, by medians; the first steps of each are left out.
"""

import argparse
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from lighten import DistillationModule, Prune, Quantize, build_data, build_model
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings

WARM_UP = 15
PLAIN, FORWARD, DISTILLED, ALL = "plain step", "teacher's forward", "distilled step", "distilled, pruned, int8 step"


class Turns:
    """Hands one baton around: whoever has it runs, and the time until it is given on is written down."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self._gone: set[str] = set()
        self._whose = 0
        self._begun: float | None = None
        self._change = threading.Condition()

    def take(self, name: str) -> None:
        """Wait for the turn of ``name``, having given on the one it holds."""
        now = time.perf_counter()
        with self._change:
            if self._begun is not None and self.names[self._whose] == name:
                self.times[name].append(now - self._begun)
                self._next()
            self._change.wait_for(lambda: self.names[self._whose] == name)
            self._begun = time.perf_counter()

    def leave(self, name: str) -> None:
        """Take no further turn."""
        with self._change:
            self._gone.add(name)
            if self.names[self._whose] == name and len(self._gone) < len(self.names):
                self._next()

    def _next(self) -> None:
        self._begun = None
        while True:
            self._whose = (self._whose + 1) % len(self.names)
            if self.names[self._whose] not in self._gone:
                break
        self._change.notify_all()


class TakeTurns(L.Callback):
    """Waits for the turn before each batch."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the turn on and wait for the next."""
        self.turns.take(self.name)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    parser.add_argument("--stem-stride", type=int, default=2, help="1 for full resolution")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    turns = Turns([PLAIN, FORWARD, DISTILLED, ALL])
    data = build_data("fashion_mnist", batch_size=arguments.batch, seed=0)
    data.prepare_data()
    data.setup("fit")
    teacher = _model(arguments, width=32).eval()
    precision = str(resolve_precision(arguments.precision))
    jobs = [
        threading.Thread(target=_look, args=(turns, teacher, data, arguments.steps, precision)),
        *(
            threading.Thread(target=_fit, args=(turns, name, arguments, teacher, data, precision))
            for name in (PLAIN, DISTILLED, ALL)
        ),
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    _print(turns, arguments, precision)


def _fit(
    turns: Turns, name: str, arguments: argparse.Namespace, teacher: torch.nn.Module, data: Any, precision: str
) -> None:
    torch.set_num_threads(arguments.threads)
    taught = None if name == PLAIN else teacher
    module = DistillationModule(
        _model(arguments, width=16), taught, soft_weight=0.0 if taught is None else 0.9,
        optimizer=OptimizerSettings("sgd", lr=0.01),
    )  # fmt: skip
    # from the first steps on: the medians are of steps in which everything is on, updates of the plan among them
    compress = [Prune(0.5, begin=0.1, end=1.0), Quantize(begin=0.0, freeze=1.0)] if name == ALL else []
    settings = {
        "max_steps": arguments.steps, "max_epochs": -1, "precision": precision, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_checkpointing": False, "gradient_clip_val": 1.0, "limit_val_batches": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            folder=folder, stage=name, settings=settings, callbacks=[TakeTurns(turns, name), *compress]
        )
        loader = data.train_dataloader()
        try:
            trainer.fit(module, loader)
        finally:
            turns.leave(name)


def _look(turns: Turns, teacher: torch.nn.Module, data: Any, steps: int, precision: str) -> None:
    images = next(iter(data.train_dataloader()))[0]
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    try:
        for _ in range(steps):
            turns.take(FORWARD)
            with torch.no_grad(), cast:
                teacher(images)
    finally:
        turns.leave(FORWARD)


def _model(arguments: argparse.Namespace, *, width: int) -> torch.nn.Module:
    options = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": arguments.stem_stride}
    return build_model("resnet20", width=width, **options).to(memory_format=torch.channels_last)


def _print(turns: Turns, arguments: argparse.Namespace, precision: str) -> None:
    times = {name: values[WARM_UP:] for name, values in turns.times.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    side = 28 // arguments.stem_stride
    print(
        f"ResNet-20 width 16, teacher width 32, stage 1 at {side}x{side}, batch {arguments.batch}, {precision}, "
        f"{arguments.threads} threads, {min(map(len, times.values()))} steps each, torch {torch.__version__}"
    )
    for name, seconds in median.items():
        low, high = statistics.quantiles(times[name], n=10)[:: 8]
        print(f"{name:30} {1e3 * seconds:7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})   "
              f"{seconds / median[PLAIN]:.2f} x plain")  # fmt: skip
    print(f"all callbacks / (plain step + teacher's forward) = {median[ALL] / (median[PLAIN] + median[FORWARD]):.2f}")


if __name__ == "__main__":
    main()
