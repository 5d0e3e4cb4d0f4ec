"""What pruning is worth: ``python benchmarks/pruning.py [fpgm] [cost] [latency] [accuracy]``, all four by default.

``fpgm``: scores of all filters of ResNet-50, against the authors' scipy code, layer by layer in turn.
``cost``: the share of a training epoch that ``Prune`` takes, by the clock around its hooks in a real fit; a fit without
it runs beside it, and they take turns batch by batch.
``latency``: dense against all widths halved, and aligned against unaligned widths of equal multiply-accumulates.
``accuracy``: ``Prune`` against Torch-Pruning, from the same dense models, by the same fine-tuning steps.
"""

import argparse
import contextlib
import copy
import io
import multiprocessing as mp
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rows import Row, add_row, command, deviation
from step_cost import WARM_UP, TakeTurns, Turn
from torch import Tensor, nn

from lighten import DistillationModule, Prune, build_data, build_model, export_onnx, plan_pruning, shrink
from lighten.delivery.measure.latency import interleaved_latency
from lighten.delivery.measure.measure import predict
from lighten.delivery.runtimes.runners import count_torch, open_runner
from lighten.pruning.score import fpgm
from lighten.pruning.updates import MAX_UPDATES
from lighten.training.fit import make_trainer, resolve_precision
from lighten.training.optimizer import OptimizerSettings
from lighten.training.reference import reference
from lighten.utils.fingerprint import fingerprint_of
from lighten.utils.inputs import as_call
from lighten.utils.machine import version_of

IMAGE = torch.zeros(1, 1, 28, 28)
DENSE = {"name": "sgd", "lr": 0.1, "weight_decay": 0.002}
FINE_TUNING = {"name": "sgd", "lr": 0.03, "weight_decay": 0.002}
DENSE_EPOCHS = 8
AMOUNT, ROUNDS = 0.6, 5
"""accuracy: share of the multiply-accumulates to go; fpgm: rounds over each layer."""
ALIGNED = ((64, 16), (64, 8), (32, 8))
"""Width of a ResNet-20 that loses 35 % of its channels, and what its widths become multiples of."""
OURS = {
    "FPGM, uniform": {"score": "fpgm"},
    "magnitude, uniform": {"score": "magnitude"},
    "auto, uniform": {"score": "auto"},
    "FPGM, by sensitivity": {"score": "fpgm", "scope": "sensitivity"},
    "FPGM, uniform, widths in eights": {"score": "fpgm", "align": 8},
}
THEIRS = {
    "magnitude": "MagnitudeImportance",
    "BN scale": "BNScaleImportance",
    "FPGM": "FPGMImportance",
    "Taylor": "TaylorImportance",
}
"""Importances of Torch-Pruning, which is imported where it is used: others take models and data from this file."""


def main() -> None:
    """Measure and print."""
    parts = {"fpgm": _fpgm, "cost": _cost, "latency": _latency, "accuracy": _accuracy}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--threads", type=int, default=2, help="of training and of scores; latency takes one")
    parser.add_argument("--precision", default="auto", help="of training: auto, 32-true, bf16-mixed")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: how many, from 0 on")
    parser.add_argument("--epochs", type=int, default=4, help="accuracy: of fine-tuning")
    parser.add_argument("--dense-epochs", type=int, default=DENSE_EPOCHS, help="accuracy: of the dense models")
    parser.add_argument("--batches", type=int, default=0, help="of each epoch, to show that it runs (default: all)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="accuracy: of a method's name")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="accuracy: where dense models stay")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    arguments.precision = str(resolve_precision(arguments.precision))
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    packages = ("torch", "torch-pruning", "scipy", "onnxruntime")
    versions = [f"{name} {version_of(name) or 'not installed'}" for name in packages]
    print(f"{processor}, {arguments.threads} threads, {', '.join(versions)}")
    for name in arguments.parts or parts:
        print(f"\n{name}")
        parts[name](arguments)


def _fpgm(arguments: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in _resnet50()]
    contenders: dict[str, Callable[[Tensor], np.ndarray]] = {"ours": lambda w: fpgm(w).numpy(), "scipy": _slow_fpgm}
    seconds, agree = dict.fromkeys(contenders, 0.0), 0
    for weight in weights:
        times: dict[str, list[float]] = {name: [] for name in contenders}
        picks = {}
        for _ in range(ROUNDS):
            for name, scores_of in contenders.items():
                start = time.perf_counter()
                scores = scores_of(weight)
                times[name].append(time.perf_counter() - start)
                picks[name] = set(np.argsort(scores, kind="stable")[: int(0.3 * len(scores))])
        agree += picks["ours"] == picks["scipy"]
        seconds = {name: seconds[name] + statistics.median(values) for name, values in times.items()}
    print(f"{len(weights)} layers, medians of {ROUNDS}: "
          f"ours {seconds['ours']:.3f} s, scipy {seconds['scipy']:.2f} s, {seconds['scipy'] / seconds['ours']:.1f} x; "
          f"the lowest 30 % are the same in {agree} of {len(weights)} layers")  # fmt: skip
    row = Row("scores", "FPGM of ResNet-50's 49 convolutions", "s", seconds["ours"], {"the authors'": seconds["scipy"]})
    add_row(arguments.json, replace(row, command=command()))


def _slow_fpgm(weight: Tensor) -> np.ndarray:
    """Return the summed distance of each filter to all others, as the authors of FPGM compute it."""
    from scipy.spatial import distance

    filters = weight.flatten(1).numpy()
    return np.sum(np.abs(distance.cdist(filters, filters, "euclidean")), axis=0)


def _resnet50() -> list[tuple[int, ...]]:
    """Return the shapes of its convolutions but for the projections, which FPGM leaves alone on ImageNet."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            inputs = 4 * width
    return shapes


def _cost(arguments: argparse.Namespace) -> None:
    context = mp.get_context("spawn")
    ring, answers = [context.Semaphore(0), context.Semaphore(0)], context.Queue()
    for prune in (False, True):
        context.Process(target=_cost_job, args=(prune, arguments, ring[prune], ring[not prune], answers)).start()
    ring[0].release()
    found = dict(answers.get(timeout=3600) for _ in ring)
    plain, pruned = (statistics.median(found[prune]["steps"][WARM_UP:]) for prune in (False, True))
    step, update = (statistics.median(found[True][key]) for key in ("step", "update"))
    steps, setup = found[True]["epoch"], found[True]["setup"]
    fit = DENSE_EPOCHS * steps * plain
    share = (DENSE_EPOCHS * steps * step + MAX_UPDATES * (update - step)) / fit
    print(f"ResNet-20 width 16 at 28x28, batch 128, {steps} steps an epoch, {arguments.precision}; medians")
    print(f"step {1e3 * plain:.1f} ms, with Prune {1e3 * pruned:.1f} ms, taking turns; of these "
          f"{1e3 * step:.2f} ms in its hooks, {1e3 * update:.1f} ms at an update")  # fmt: skip
    print(f"{MAX_UPDATES} updates in {DENSE_EPOCHS} epochs: {share:.2%} of the epochs' steps; once a fit, "
          f"setup {setup:.2f} s, {setup / fit:.2%}")  # fmt: skip


def _cost_job(prune: bool, arguments: argparse.Namespace, mine: Any, following: Any, answers: Any) -> None:
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    turn, hooks = Turn(mine, following), Stopwatch(0.5, begin=0.0, end=0.8)
    data = _data(seed=0)
    data.setup("fit")
    _fit(_build(0, stem_stride=1), data, DENSE, arguments, epochs=1, callbacks=[TakeTurns(turn), *([hooks] * prune)])
    turn.leave()
    answers.put((prune, {"steps": turn.times, "epoch": len(data.train_dataloader()), **hooks.seconds}))


class Stopwatch(Prune):
    """Notes how long its hooks take, steps with an update apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: dict[str, Any] = {"update": [], "step": []}

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Time it."""
        start = time.perf_counter()
        super().setup(*args, **kwargs)
        self.seconds["setup"] = time.perf_counter() - start

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Time it."""
        before, start = self.plan, time.perf_counter()
        super().on_train_batch_end(*args, **kwargs)
        self.seconds["step" if self.plan is before else "update"].append(time.perf_counter() - start)


def _latency(arguments: argparse.Namespace) -> None:
    dense = _build(0, stem_stride=1)
    halved = shrink(dense, plan_pruning(dense, IMAGE, 0.5))
    _race("ResNet-20 width 16", {"dense": dense, "widths halved": halved})
    for width, align in ALIGNED:
        dense = _build(0, stem_stride=1, width=width)
        aligned = plan_pruning(dense, IMAGE, 0.35, align=align)
        unaligned = plan_pruning(dense, IMAGE, aligned.saved["macs"], target="macs")
        plans = {"align=1": unaligned, f"align={align}": aligned}
        widths = [", ".join(map(str, sorted({row.width_after for row in plan.groups}))) for plan in plans.values()]
        _race(f"ResNet-20 width {width}, cut to {' or '.join(widths)}", {k: shrink(dense, v) for k, v in plans.items()})


def _race(title: str, models: Mapping[str, nn.Module]) -> None:
    """Print the latency of the second model of two against the first."""
    batches = {f"batch {size}": as_call(torch.rand(size, 1, 28, 28)) for size in (1, 32)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = {name: export_onnx(model, IMAGE, Path(folder) / f"{name}.onnx") for name, model in models.items()}
        runners = {name: stack.enter_context(open_runner(file, threads=1)) for name, file in files.items()}
        found = interleaved_latency(runners, batches, seconds=5.0)
    macs = ", ".join(f"{name} {_macs(model) / 1e6:.2f} M MACs" for name, model in models.items())
    print(f"{title}; onnxruntime, one thread\n  {macs}")
    for batch in batches:
        first, second = (found[name][batch]["median"] for name in models)
        print(f"  {batch}: {first:.3f} ms and {second:.3f} ms, {first / second:.2f} x")


def _accuracy(arguments: argparse.Namespace) -> None:
    accuracy: dict[str, list[float]] = {}
    macs: dict[str, list[int]] = {}
    first: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    for seed in range(arguments.seeds):
        data = _data(seed)
        data.setup("fit")
        dense = _dense(seed, data, arguments)

        def note(name: str, model: nn.Module, data: Any = data) -> None:
            logits, labels = predict(model, data.test_dataloader(), threads=arguments.threads)
            accuracy.setdefault(name, []).append(100 * float((logits.argmax(1) == labels).mean()))
            macs.setdefault(name, []).append(_macs(model))
            first.setdefault(name, model)
            print(f"  seed {len(accuracy[name]) - 1}, {name}: {accuracy[name][-1]:.2f} %", flush=True)

        note("dense", dense)
        asked = partial(_asked, arguments=arguments)
        for name, chosen in filter(asked, OURS.items()):
            prune = Prune(AMOUNT, begin=0.0, end=0.5, target="macs", module="student", **chosen)
            model = copy.deepcopy(dense)
            _fit(model, data, FINE_TUNING, arguments, arguments.epochs, [prune])
            assert prune.plan is not None
            note(f"ours: {name}", shrink(model, prune.plan))
        for name, importance in filter(asked, THEIRS.items()):
            for scope in ("local", "global"):
                try:
                    model = _torch_pruning(dense, importance, scope, data)
                except Exception as error:  # of a library that is not installed, or fails
                    failed["Torch-Pruning"] = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
                    continue
                _fit(model, data, FINE_TUNING, arguments, arguments.epochs)
                note(f"Torch-Pruning: {name}, {scope}", model)
        _note_accuracy(accuracy, first, failed, arguments)
    _print_accuracy(accuracy, macs, arguments)


def _asked(method: tuple[str, Any], arguments: argparse.Namespace) -> bool:
    return any(part.lower() in method[0].lower() for part in arguments.only)


def _note_accuracy(
    accuracy: dict[str, list[float]], models: dict[str, nn.Module], failed: dict[str, str], arguments: Any
) -> None:
    """Note accuracies, and latencies of the first seed's models: ours is the one of best mean, the others beside it."""
    mean = {name: statistics.mean(values) for name, values in accuracy.items()}
    ours = max((name for name in mean if name.startswith("ours")), key=mean.__getitem__)
    spread = {name: deviation(values) for name, values in accuracy.items()}
    claim = f"ResNet-20 at {1 - AMOUNT:.0%} of its multiply-accumulates, {arguments.seeds} seeds"
    rows = [("accuracy", "%", "higher", mean, spread)]
    for batch, found in _latencies(models).items():
        medians = {name: value["median"] for name, value in found.items()}
        above = {name: value["p90"] - value["median"] for name, value in found.items()}
        rows.append((f"onnxruntime, one thread, {batch}", "ms", "lower", medians, above))
    for what, unit, better, figures, wide in rows:
        named = {name: value for name, value in figures.items() if name != ours}
        wide = {"lighten" if name == ours else name: value for name, value in wide.items()}
        title = f"{claim}: {what} ({ours.removeprefix('ours: ')})"
        peers = {**named, **failed}
        add_row(arguments.json, Row("pruning", title, unit, figures[ours], peers, wide, better, command()))


def _latencies(models: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Return the latency of all models in turn, by batch size and name."""
    batches = {f"batch {size}": as_call(torch.rand(size, 1, 28, 28)) for size in (1, 32)}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = {name: export_onnx(m, IMAGE, Path(folder) / f"{k}.onnx") for k, (name, m) in enumerate(models.items())}
        runners = {name: stack.enter_context(open_runner(file, threads=1)) for name, file in files.items()}
        found = interleaved_latency(runners, batches, seconds=5.0)
    return {batch: {name: found[name][batch] for name in models} for batch in batches}


def _print_accuracy(accuracy: dict[str, list[float]], macs: dict[str, list[int]], arguments: Any) -> None:
    mean = {name: statistics.mean(values) for name, values in accuracy.items()}
    best = max((name for name in mean if name.startswith("Torch-Pruning")), key=mean.__getitem__, default="dense")
    print(f"ResNet-20 width 16 at 14x14, {arguments.precision}, {arguments.epochs} epochs after "
          f"{arguments.dense_epochs} dense ones, {arguments.seeds} seeds, 2,000 test images; "
          f"{best} is Torch-Pruning's best\n")  # fmt: skip
    print("| method | MACs | accuracy | against the best of Torch-Pruning |\n|---|---:|---:|---:|")
    for name, values in accuracy.items():
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        low, high = min(macs[name]) / 1e6, max(macs[name]) / 1e6
        size = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
        print(f"| {name} | {size} M | {mean[name]:.2f}{spread} % | {mean[name] - mean[best]:+.2f} |")


def _dense(seed: int, data: Any, arguments: argparse.Namespace) -> nn.Module:
    epochs = arguments.dense_epochs
    parts = {"seed": seed, "data": data.fingerprint, "optimizer": DENSE, "epochs": epochs,
             "precision": arguments.precision}  # fmt: skip
    parts |= {"batches": arguments.batches} if arguments.batches else {}
    train = partial(_fit, data=data, optimizer=DENSE, arguments=arguments, epochs=epochs)
    return reference(arguments.cache, partial(_build, seed), train, fingerprint_of(**parts))


def _torch_pruning(dense: nn.Module, importance: Any, scope: str, data: Any) -> nn.Module:
    """Return a cut copy whose MACs are as near as its ratio of channels gets to what is asked."""
    import torch_pruning as tp

    goal, low, high = (1.0 - AMOUNT) * _macs(dense), 0.0, 1.0
    images, labels = next(iter(data.val_dataloader()))
    tried: list[nn.Module] = []
    for _ in range(10):
        ratio, model = (low + high) / 2, copy.deepcopy(dense)
        F.cross_entropy(model(images), labels).backward()  # Taylor reads the gradients
        options = {"global_pruning": scope == "global", "pruning_ratio": ratio, "ignored_layers": [model.head]}
        tp.pruner.MetaPruner(model, IMAGE, getattr(tp.importance, importance)(), **options).step()
        model.zero_grad()
        tried.append(model)
        low, high = (ratio, high) if _macs(model) > goal else (low, ratio)
    return min(tried, key=lambda model: abs(_macs(model) - goal)).to(memory_format=torch.channels_last)


def _fit(
    model: nn.Module, data: Any, optimizer: Any, arguments: argparse.Namespace, epochs: int, callbacks: Any = ()
) -> None:
    module = DistillationModule(model.train(), None, soft_weight=0.0, optimizer=OptimizerSettings(**optimizer))
    settings = {
        "max_epochs": epochs, "precision": arguments.precision, "accelerator": "cpu", "gradient_clip_val": 1.0,
        "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0,
        "limit_train_batches": arguments.batches or 1.0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(folder=folder, stage="fit", settings=settings, callbacks=callbacks, seed=data.seed)
        trainer.fit(module, data)
    model.cpu().eval()


def _data(seed: int) -> Any:
    return build_data("fashion_mnist", batch_size=128, seed=seed)


def _build(seed: int, width: int = 16, stem_stride: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    options = {"num_classes": 10, "input_shape": (1, 28, 28), "width": width, "stem_stride": stem_stride}
    return build_model("resnet20", **options).to(memory_format=torch.channels_last)


def _macs(model: nn.Module) -> int:
    return count_torch(model, as_call(IMAGE))["macs"]


if __name__ == "__main__":
    main()
