"""What safety costs while training: ``python benchmarks/reliability.py cost [--epochs N]``.

The same fit twice, of the sizes of ``recipe=distil_cnn``: distilled, pruned, through int8. Once by ``make_trainer``
with all that keeps a run safe: checkpoints with manifests and origin, looking for numbers that are not finite, history,
signals, seeds. Once by Lightning's Trainer alone. They run in processes that take turns batch by batch; a step lasts
until the next one asks for its turn, so that an epoch's last step carries validation and saving. The second column
counts the seconds inside the safe fit's own parts, which is less noisy, but leaves out what they make others wait for.
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
MOST = 0.02


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability.py cost")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed")
    arguments = parser.parse_args(argv)
    times = in_turn(_job, [BARE, SAFE], arguments)
    spent = times[SAFE].pop()  # the last entry: seconds inside the safe fit's own parts, in all
    steps = min(map(len, times.values())) // arguments.epochs
    epochs = {name: _epochs(seconds, steps) for name, seconds in times.items()}
    pairs = list(zip(epochs[SAFE], epochs[BARE], strict=True))
    share = statistics.median(safe / bare - 1 for safe, bare in pairs)
    inside = spent / sum(epochs[SAFE])
    per_step = statistics.median(a - b for a, b in zip(times[SAFE], times[BARE], strict=False))
    print(f"{steps} steps an epoch, {arguments.epochs} epochs, batch {arguments.batch}, {arguments.threads} threads\n")
    print("| an epoch, median | bare | safe | difference | inside the safe parts | per step |")
    print("|---|---:|---:|---:|---:|---:|")
    bare, safe = (statistics.median(epochs[name]) for name in (BARE, SAFE))
    print(
        f"| seconds | {bare:.2f} | {safe:.2f} | {share:+.2%} (epochs: "
        f"{', '.join(f'{a / b - 1:+.1%}' for a, b in pairs)}) | {inside:.2%} | {1e3 * per_step:+.2f} ms |"
    )
    return int(min(share, inside) > MOST)


def _epochs(seconds: list[float], steps: int) -> list[float]:
    return [sum(seconds[at : at + steps]) for at in range(0, len(seconds) - steps + 1, steps)]


def _job(name: str, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    from lighten import DistillationModule, Prune, Quantize, build_data, build_model
    from lighten.training.fit import make_trainer, resolve_precision
    from lighten.training.optimizer import OptimizerSettings
    from lighten.training.origin import Origin

    data = build_data("fashion_mnist", batch_size=arguments.batch, seed=0)
    shape = {"num_classes": 10, "input_shape": (1, 28, 28), "stem_stride": 2}
    student, teacher = (
        build_model("resnet20", width=width, blocks=blocks, **shape).to(memory_format=torch.channels_last)
        for width, blocks in ((32, 1), (40, 2))
    )
    module = DistillationModule(student, teacher.eval(), num_classes=10, optimizer=OptimizerSettings("sgd", lr=0.01))
    turn = Turn(mine, following)
    callbacks: list[L.Callback] = [TakeTurns(turn), Prune(0.5, begin=0.1, end=0.6), Quantize(begin=0.3)]
    settings = {
        "max_epochs": arguments.epochs, "accelerator": "cpu", "enable_progress_bar": False, "gradient_clip_val": 1.0,
        "precision": str(resolve_precision(arguments.precision)), "enable_model_summary": False,
        "num_sanity_val_steps": 0, "log_every_n_steps": 10,
    }  # fmt: skip
    spent = [0.0]
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        if name == SAFE:
            origin = Origin({"optimizer.lr": 0.01}, {"data": data.fingerprint, "teacher": module.teacher.fingerprint})
            trainer = make_trainer(folder=folder, stage=name, settings=settings, callbacks=[*callbacks, origin])
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
    answers.put((name, [*turn.times, *(spent if name == SAFE else [])]))


def _time_hooks(callback: L.Callback, spent: list[float]) -> None:
    """Add to ``spent`` the seconds in a callback's hooks, saves and writes; what one calls of another counts once."""
    hooks = [name for name in dir(callback) if name.startswith("on_") or name in ("state_dict", "write")]
    for name in hooks:
        setattr(callback, name, _timed(getattr(callback, name), spent))


_DEPTH = [0]


def _timed(hook: Any, spent: list[float]) -> Any:
    @functools.wraps(hook)
    def timed(*args: Any, **kwargs: Any) -> Any:
        _DEPTH[0] += 1
        begun = time.perf_counter()
        try:
            return hook(*args, **kwargs)
        finally:
            _DEPTH[0] -= 1
            if not _DEPTH[0]:
                spent[0] += time.perf_counter() - begun

    return timed
