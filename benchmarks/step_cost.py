"""What compression costs while training: ``python benchmarks/step_cost.py [--precision bf16-mixed] [--batch 128]``.

Real fits run side by side, each in a process of its own, and take turns batch by batch, so that what disturbs one
disturbs all: a student on labels alone; distilled; distilled with ``Prune`` and ``Quantize`` fully active; and between
them the teacher's forward by itself. A step lasts from the moment a fit has the turn until it asks for the next one:
data, forward, backward, optimizer, logging, every callback. The price is the last fit's step over the plain step plus
the teacher's forward, by medians; the first steps of each are left out.
"""

import argparse
import contextlib
import io
import multiprocessing as mp
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch

from lighten import DistillationModule, Prune, Quantize, build_data, build_model
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings

WARM_UP = 15
PLAIN, FORWARD, DISTILLED, ALL = "plain step", "teacher's forward", "distilled step", "distilled, pruned, int8 step"


class Turn:
    """A place in a ring of fits: waits for the one before it; what it does until it gives the turn on is timed."""

    def __init__(self, mine: Any, following: Any) -> None:
        self.mine, self.following = mine, following
        self.times: list[float] = []
        self._begun: float | None = None

    def take(self) -> None:
        """Give the turn on, if it is held, and wait for the next."""
        self.leave()
        self.mine.acquire()
        self._begun = time.perf_counter()

    def leave(self) -> None:
        """Give the turn on."""
        if self._begun is not None:
            self.times.append(time.perf_counter() - self._begun)
            self._begun = None
            self.following.release()


class TakeTurns(L.Callback):
    """Waits for the turn before each batch."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the turn on and wait for the next."""
        self.turn.take()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    parser.add_argument("--student", type=int, nargs=2, default=(32, 1), help="width and blocks a stage")
    parser.add_argument("--teacher", type=int, nargs=2, default=(40, 2), help="width and blocks a stage")
    parser.add_argument("--stem-stride", type=int, default=2, help="1 for full resolution")
    arguments = parser.parse_args()
    arguments.precision = str(resolve_precision(arguments.precision))
    times = in_turn(_job, [PLAIN, FORWARD, DISTILLED, ALL], arguments)
    _print({name: seconds[WARM_UP:] for name, seconds in times.items()}, arguments)


def in_turn(job: Callable[..., None], names: Sequence[str], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of every turn of jobs that run in processes of their own, by name.

    ``job`` gets its name, the arguments, its own and the next one's semaphore for a :class:`Turn`, and a queue for
    ``(name, seconds)``.
    """
    context = mp.get_context("spawn")
    ring, answers = [context.Semaphore(0) for _ in names], context.Queue()
    jobs = [
        context.Process(target=job, args=(name, arguments, ring[k], ring[(k + 1) % len(ring)], answers))
        for k, name in enumerate(names)
    ]
    for process in jobs:
        process.start()
    ring[0].release()
    times = dict(answers.get(timeout=3600) for _ in jobs)
    for process in jobs:
        process.join()
    return {name: times[name] for name in names}


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    data = build_data("fashion_mnist", batch_size=arguments.batch, seed=0)
    data.prepare_data()
    data.setup("fit")
    teacher = _model(arguments, *arguments.teacher).eval()
    turn = Turn(mine, following)
    with contextlib.redirect_stdout(io.StringIO()):
        if name == FORWARD:
            _look(turn, teacher, data, arguments)
        else:
            _fit(turn, name, arguments, teacher, data)
    turn.leave()
    answers.put((name, turn.times))


def _fit(turn: Turn, name: str, arguments: argparse.Namespace, teacher: torch.nn.Module, data: Any) -> None:
    taught = None if name == PLAIN else teacher
    module = DistillationModule(
        _model(arguments, *arguments.student), taught, soft_weight=0.0 if taught is None else 0.9,
        optimizer=OptimizerSettings("sgd", lr=0.01),
    )  # fmt: skip
    # from the first steps on: the medians are of steps in which everything is on
    compress = [Prune(0.5, begin=0.0, end=0.5), Quantize(begin=0.0, freeze=1.0)] if name == ALL else []
    settings = {
        "max_steps": arguments.steps, "max_epochs": -1, "precision": arguments.precision, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_checkpointing": False, "gradient_clip_val": 1.0, "limit_val_batches": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder=folder, stage=name, settings=settings, callbacks=[TakeTurns(turn), *compress])
        trainer.fit(module, data.train_dataloader())


def _look(turn: Turn, teacher: torch.nn.Module, data: Any, arguments: argparse.Namespace) -> None:
    images = next(iter(data.train_dataloader()))[0]
    cast = torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16-mixed")
    for _ in range(arguments.steps):
        turn.take()
        with torch.no_grad(), cast:
            teacher(images)


def _model(arguments: argparse.Namespace, width: int, blocks: int) -> torch.nn.Module:
    options = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": arguments.stem_stride}
    return build_model("resnet20", width=width, blocks=blocks, **options).to(memory_format=torch.channels_last)


def _print(times: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    median = {name: statistics.median(values) for name, values in times.items()}
    side = 28 // arguments.stem_stride
    shapes = [f"{role} width {width}, {blocks} blocks a stage" for role, (width, blocks) in
              (("student", arguments.student), ("teacher", arguments.teacher))]  # fmt: skip
    print(
        f"ResNet, {'; '.join(shapes)}; stage 1 at {side}x{side}, batch {arguments.batch}, {arguments.precision}, "
        f"{arguments.threads} threads, {min(map(len, times.values()))} steps each, torch {torch.__version__}"
    )
    for name, seconds in median.items():
        low, *_, high = statistics.quantiles(times[name], n=10)
        print(f"{name:30} {1e3 * seconds:7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})   "
              f"{seconds / median[PLAIN]:.2f} x plain")  # fmt: skip
    print(f"all callbacks / (plain step + teacher's forward) = {median[ALL] / (median[PLAIN] + median[FORWARD]):.2f}")


if __name__ == "__main__":
    main()
