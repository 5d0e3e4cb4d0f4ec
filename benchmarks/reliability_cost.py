"""What safety costs while training: ``python benchmarks/reliability.py cost [--epochs N]``.

The same fit twice, of the sizes of ``recipe=distil_cnn``: distilled, pruned, through int8. Once by ``make_trainer``
with all that keeps a run safe: checkpoints with manifests and origin, looking for numbers that are not finite, history,
signals, seeds. Once by Lightning's Trainer alone. They run in processes that take turns batch by batch; a step lasts
until the next one asks for its turn, so that an epoch's last step carries validation and saving. What decides are the
seconds inside the safe fit's own parts, which other work beside it disturbs less; they leave out what these parts make
others wait for. Where the machine is busy, look at the processor's time.
"""

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
import time
import warnings
from typing import Any

import lightning as L
import torch
from step_cost import TakeTurns, Turn, in_turn

SAFE, BARE = "with all safety", "without"
MAX_SHARE = 0.02


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py cost")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    arguments = parser.parse_args(argv)
    found: Any = in_turn(_job, [BARE, SAFE], arguments)
    steps = len(found[BARE]["wall"]) // arguments.epochs
    print(f"{steps} steps an epoch, {arguments.epochs} epochs, batch {arguments.batch}, {arguments.threads} threads\n")
    print("| an epoch, median | bare | safe | difference | of each epoch | inside the safe parts |")
    print("|---|---:|---:|---:|---|---:|")
    inside = {}
    for clock, says in (("wall", "seconds"), ("cpu", "processor's seconds")):
        bare, safe = (_epochs(found[name][clock], steps) for name in (BARE, SAFE))
        shares = [there / here - 1 for here, there in zip(bare, safe, strict=True)]
        inside[clock] = found[SAFE]["inside"][clock] / sum(safe)
        each = ", ".join(f"{share:+.1%}" for share in shares)
        medians = f"{statistics.median(bare):.2f} | {statistics.median(safe):.2f} | {statistics.median(shares):+.2%}"
        print(f"| {says} | {medians} | {each} | {inside[clock]:.2%} |")
    return int(inside["wall"] > MAX_SHARE)


class BothClocks(Turn):
    """A turn that also counts the processor's seconds of its process."""

    def __init__(self, mine: Any, following: Any) -> None:
        super().__init__(mine, following)
        self.cpu: list[float] = []
        self._cpu_begun = 0.0

    def take(self) -> None:
        """Give the turn on, if it is held, and wait for the next."""
        super().take()
        self._cpu_begun = time.process_time()

    def leave(self) -> None:
        """Give the turn on."""
        if self._begun is not None:
            self.cpu.append(time.process_time() - self._cpu_begun)
        super().leave()


def _epochs(seconds: list[float], steps: int) -> list[float]:
    return [sum(seconds[at : at + steps]) for at in range(0, len(seconds) - steps + 1, steps)]


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    from lighten import DistillationModule, Prune, Quantize, build_data, build_model
    from lighten.training.fit import make_trainer, resolve_precision
    from lighten.training.lineage import Lineage
    from lighten.training.optimizer import OptimizerSettings

    data = build_data("fashion_mnist", batch_size=arguments.batch, seed=0)
    shape = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": 2}
    student, teacher = (
        build_model("resnet20", width=width, blocks=blocks, **shape).to(memory_format=torch.channels_last)
        for width, blocks in ((32, 1), (40, 2))
    )
    module = DistillationModule(student, teacher.eval(), num_classes=10, optimizer=OptimizerSettings("sgd", lr=0.01))
    turn = BothClocks(mine, following)
    callbacks: list[L.Callback] = [TakeTurns(turn), Prune(0.5, begin=0.1, end=0.6), Quantize(begin=0.3)]
    settings = {
        "max_epochs": arguments.epochs, "accelerator": "cpu", "enable_progress_bar": False, "gradient_clip_val": 1.0,
        "precision": str(resolve_precision(arguments.precision)), "enable_model_summary": False,
        "num_sanity_val_steps": 0, "log_every_n_steps": 10,
    }  # fmt: skip
    spent = {"wall": 0.0, "cpu": 0.0}
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        if name == SAFE:
            lineage = Lineage({"optimizer.lr": 0.01}, {"data": data.fingerprint, "teacher": module.teacher.fingerprint})
            trainer = make_trainer(folder=folder, stage=name, settings=settings, callbacks=[*callbacks, lineage])
            for each in trainer.callbacks:
                if type(each).__module__.startswith("lighten.training"):
                    _time_hooks(each, spent)
        else:
            trainer = L.Trainer(
                **settings, callbacks=callbacks, logger=False, enable_checkpointing=False,
                use_distributed_sampler=False, default_root_dir=folder,
            )  # fmt: skip
        trainer.fit(module, data)
    turn.leave()
    answers.put((name, {"wall": turn.times, "cpu": turn.cpu, "inside": spent}))


def _time_hooks(callback: L.Callback, spent: dict[str, float]) -> None:
    """Add to ``spent`` the seconds in a callback's hooks, saves and writes; what one calls of another counts once."""
    hooks = [name for name in dir(callback) if name.startswith("on_") or name in ("state_dict", "write")]
    for name in hooks:
        setattr(callback, name, _timed(getattr(callback, name), spent))


_DEPTH = [0]


def _timed(hook: Any, spent: dict[str, float]) -> Any:
    @functools.wraps(hook)
    def timed(*args: Any, **kwargs: Any) -> Any:
        _DEPTH[0] += 1
        begun, cpu_begun = time.perf_counter(), time.process_time()
        try:
            return hook(*args, **kwargs)
        finally:
            _DEPTH[0] -= 1
            if not _DEPTH[0]:
                spent["wall"] += time.perf_counter() - begun
                spent["cpu"] += time.process_time() - cpu_begun

    return timed
