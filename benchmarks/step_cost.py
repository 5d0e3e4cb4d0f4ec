"""What compression costs while training: ``python benchmarks/step_cost.py [--precision bf16-mixed] [--batch 128]``.

Real fits run side by side, each in a process of its own, and take turns batch by batch, so that what disturbs one
disturbs all: a student on labels alone; distilled; distilled with ``Prune`` and ``Quantize`` fully active; and between
them the teacher's forward by itself. A step lasts from the moment a fit has the turn until it asks for the next one:
data, forward, backward, optimizer, logging, every callback. The price is the last fit's step over the plain step plus
the teacher's forward, by medians; the first steps of each are left out.

Logging is timed inside the fits, as the difference of two fits would drown a hundredth of a step in noise: all that
``self.log`` and Lightning's logger connector take, history and logger included, with the recipes' default of a log
point every ten steps, as a share of all steps' time: by the clock, and by processor time of the fit's thread, which
others on the machine disturb less. One fit more logs to W&B instead of CSV, offline; its helper processes take
processor time of their own, which is printed too.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing as mp
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from rows import Row, add_row, command, width

from lighten import DistillationModule, Prune, Quantize, build_data, build_model
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.loggers import ending, make_logger
from lighten.training.optimizer import OptimizerSettings

WARM_UP = 15
PLAIN, FORWARD, DISTILLED, ALL = "plain step", "teacher's forward", "distilled step", "distilled, pruned, int8 step"
WANDB = "the same, logging to W&B"


class Stopwatch:
    """Adds up the seconds that functions take, one that calls another counted once."""

    def __init__(self) -> None:
        self.seconds, self.busy, self._inside = 0.0, 0.0, False

    def watch(self, owner: Any, *names: str) -> None:
        """Put itself around functions of a class."""
        for name in names:
            setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begun, busy = True, time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - begun
                self.busy += time.thread_time() - busy

        return watched


LOGGING = Stopwatch()


class Turn:
    """A place in a ring of fits: waits for the one before it; what it does until it gives the turn on is timed."""

    def __init__(self, mine: Any, following: Any) -> None:
        self.mine, self.following = mine, following
        self.times: list[float] = []
        self.shares: list[tuple[float, float, float]] = []
        self._busy = 0.0
        self._begun: float | None = None

    def take(self) -> None:
        """Give the turn on, if it is held, and wait for the next."""
        self.leave()
        self.mine.acquire()
        LOGGING.seconds = LOGGING.busy = 0.0
        self._busy = time.thread_time()
        self._begun = time.perf_counter()

    def leave(self) -> None:
        """Give the turn on."""
        if self._begun is not None:
            self.times.append(time.perf_counter() - self._begun)
            self.shares.append((LOGGING.seconds, LOGGING.busy, time.thread_time() - self._busy))
            self._begun = None
            self.following.release()


class TakeTurns(L.Callback):
    """Waits for the turn before each batch."""

    def __init__(self, turn: Turn) -> None:
        self.turn, self.helpers, self.begun = turn, 0.0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the turn on and wait for the next."""
        if trainer.global_step == WARM_UP:
            self.helpers, self.begun = _helpers_seconds(), time.perf_counter()
        self.turn.take()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what helper processes took: a share of a processor."""
        self.helpers = (_helpers_seconds() - self.helpers) / (time.perf_counter() - self.begun)


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
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    arguments.precision = str(resolve_precision(arguments.precision))
    answers: Any = in_turn(_job, [PLAIN, FORWARD, DISTILLED, ALL, WANDB], arguments)
    _print({name: answer["times"][WARM_UP:] for name, answer in answers.items()}, arguments)
    _print_logging(answers)


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
    turn, helpers = Turn(mine, following), 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        if name == FORWARD:
            _look(turn, teacher, data, arguments)
        else:
            helpers = _fit(turn, name, arguments, teacher, data)
    turn.leave()
    answers.put((name, {"times": turn.times, "shares": turn.shares, "helpers": helpers}))


def _fit(turn: Turn, name: str, arguments: argparse.Namespace, teacher: torch.nn.Module, data: Any) -> float:
    LOGGING.watch(L.LightningModule, "log", "log_dict")
    connector = ("log_metrics", "on_batch_start", "on_batch_end", "update_train_step_metrics")
    LOGGING.watch(_LoggerConnector, *connector, "on_epoch_end", "update_train_epoch_metrics")
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    taught = None if name == PLAIN else teacher
    module = DistillationModule(
        _model(arguments, *arguments.student), taught, soft_weight=0.0 if taught is None else 0.9,
        optimizer=OptimizerSettings("sgd", lr=0.01),
    )  # fmt: skip
    # from the first steps on: the medians are of steps in which everything is on
    compress = [Prune(0.5, begin=0.0, end=0.5), Quantize(begin=0.0, freeze=1.0)] if name in (ALL, WANDB) else []
    settings = {
        "max_steps": arguments.steps, "max_epochs": -1, "precision": arguments.precision, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_checkpointing": False, "gradient_clip_val": 1.0, "limit_val_batches": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        taking, logger = TakeTurns(turn), make_logger("wandb" if name == WANDB else "csv", folder, config={"seed": 0})
        with ending(logger):
            trainer = make_trainer(
                folder=folder, stage=name, settings=settings, callbacks=[taking, *compress], logger=logger
            )
            trainer.fit(module, data.train_dataloader())
            turn.leave()
    return taking.helpers


def _helpers_seconds() -> float:
    """Return the processor time of the processes that this one has started, and of theirs; 0 where /proc is missing."""

    def of(process: int) -> float:
        total = 0.0
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + of(int(child))
        return total

    return of(os.getpid())


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
    base = median[PLAIN] + median[FORWARD]
    print(f"all callbacks / (plain step + teacher's forward) = {median[ALL] / base:.2f}")
    peers = {"plain step + teacher's forward": 1e3 * base, **{name: 1e3 * median[name] for name in (PLAIN, DISTILLED)}}
    wide = {"lighten": 1e3 * width(times[ALL]), **{name: 1e3 * width(times[name]) for name in (PLAIN, DISTILLED)}}
    claim = f"step with a teacher, Prune and Quantize all on, batch {arguments.batch}"
    add_row(arguments.json, Row("cost", claim, "ms", 1e3 * median[ALL], peers, wide, command=command()))


def _print_logging(answers: dict[str, Any]) -> None:
    for name in (PLAIN, DISTILLED, ALL, WANDB):
        times = answers[name]["times"][WARM_UP:]
        logging, busy, all_busy = (sum(part) for part in zip(*answers[name]["shares"][WARM_UP:], strict=True))
        words = f"{name}{'' if name == WANDB else ', to CSV'}"
        print(f"logging, {words:38} {1e3 * logging / len(times):6.3f} ms a step, {logging / sum(times):.2%}; "
              f"processor {1e3 * busy / len(times):6.3f} ms, {busy / all_busy:.2%}")  # fmt: skip
    print(f"W&B's own processes take {answers[WANDB]['helpers']:.2%} of one processor")


if __name__ == "__main__":
    main()
