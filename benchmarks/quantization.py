"""What int8 costs and keeps: ``python benchmarks/quantization.py [part ...]``.

All six parts by default; ``--quick`` only shows that they run. Ratios are of figures measured side by side.

``step``: a training step through int8 against the plain one. ResNet-20 beside other libraries, by
``quantization_peers.py``; then ResNet-20 and a small encoder in turn in one process, also in bfloat16 where the
processor computes in it, and with learned ranges; with the bytes that autograd keeps for the backward pass.
``ranges``: the rules for activation ranges. Squared error on values that are far from uniform, then accuracy and error
of the logits of ResNet-20, quantized after training, and after an epoch of training through int8.
``agreement``: the fake-quantized PyTorch model against what is made of it, logit by logit, in every runtime there is.
``speed``: files of ResNet-20 and of the small encoder in onnxruntime, against its own quantization of the same float
file, and in the other runtimes against their own float files; one thread, all in turn.
``kernels``: where onnxruntime's time goes in ResNet-20's float and int8 files, operator by operator, and so what any
int8 file could gain there at most.
``accuracy``: training through int8 against the same steps in floating point, and against quantization after training;
what onnxruntime makes of the files, over seeds.
"""

import argparse
import contextlib
import copy
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pruning import DENSE, DENSE_EPOCHS, IMAGE, _build, _data, _fit
from rows import Row, add_row, command, deviation
from torch import Tensor, nn

from lighten import Quantize, export, export_onnx, quantize_
from lighten.delivery.measure.latency import interleaved_latency
from lighten.delivery.measure.measure import predict
from lighten.delivery.runtimes.onnx import OnnxRunner
from lighten.delivery.runtimes.quiet import silent
from lighten.delivery.runtimes.runners import open_runner
from lighten.quantization.activation_quantizers import ActivationQuantizers, Stage, quantizers_of
from lighten.quantization.fake_quant import fake_quantize
from lighten.quantization.integer_layers import convert
from lighten.quantization.observe import RULES
from lighten.quantization.post_training import quantize_post_training
from lighten.training.fit import resolve_precision
from lighten.training.reference import reference
from lighten.utils.batch import BatchFormat
from lighten.utils.fingerprint import fingerprint_of
from lighten.utils.inputs import Call, as_call, logits_of, map_tensors
from lighten.utils.targets import TARGETS

FINE_TUNING = {"name": "sgd", "lr": 0.01, "weight_decay": 5e-4}
"""Of ``recipe=quantize_cnn``: batch norm's statistics are frozen, so that steps must be small."""
THROUGH_INT8 = {"begin": 0.34, "freeze": 0.9, "module": "student"}
WARM_UP, CALIBRATION = 5, 512
"""Steps that are left out; images of calibration."""
STEPS: dict[str, str | None] = {"plain": None, "through int8": "moving_average", "through int8, learned ranges": "lsq"}
TRAINED_RULES = ("moving_average", "mse", "lsq")
BATCHES, BATCH, LEARNING = 16, 2**15, 200
"""ranges: of synthetic values, and how many steps a learned range takes on them."""
WORDS, LENGTH = 8000, 128
PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "executorch", "transformers")


def main() -> None:
    """Measure and print."""
    parts = {
        "step": _step, "ranges": _ranges, "agreement": _agreement, "speed": _speed, "kernels": _kernels,
        "accuracy": _accuracy,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--threads", type=int, default=2, help="of training; speed takes one")
    parser.add_argument("--precision", default="auto", help="of training: auto, 32-true, bf16-mixed")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], help="of weights, in ranges and accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: how many, from 0 on")
    parser.add_argument("--dense-epochs", type=int, default=DENSE_EPOCHS, help="of the models that are quantized")
    parser.add_argument("--epochs", type=int, default=3, help="accuracy: of fine-tuning")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="where dense models stay")
    parser.add_argument("--quick", action="store_true", help="little of everything; the figures mean nothing")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.dense_epochs, arguments.epochs = 1, 1, 1
    arguments.batches = 4 if arguments.quick else 0
    arguments.precision = str(resolve_precision(arguments.precision))
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    print(f"{processor}, {arguments.threads} threads, {', '.join(_versions())}")
    for name in arguments.parts or parts:
        print(f"\n{name}", flush=True)
        parts[name](arguments)


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"


@dataclass
class Job:
    """A network to train or to run: ``build`` makes it afresh, the same each time; ``call`` is a batch for it."""

    title: str
    build: Callable[[], nn.Module]
    call: Call
    labels: Tensor


def _step(arguments: argparse.Namespace) -> None:
    peers = Path(__file__).with_name("quantization_peers.py")
    few = ["--steps", "8", "--batch", "32", "--only", "lighten"] if arguments.quick else []
    subprocess.run([sys.executable, str(peers), "--threads", str(arguments.threads), *few], check=True)
    torch.manual_seed(0)
    sizes = (8, 2) if arguments.quick else (128, 16)
    for job in (_resnet_job(sizes[0]), _encoder_job(sizes[1])):
        for precision in dict.fromkeys(("32-true", arguments.precision)):
            steps = {name: Step(job, ranges, precision) for name, ranges in STEPS.items()}
            times = _in_turn(steps, 6 if arguments.quick else 40)
            kept = {name: step.bytes_kept() for name, step in steps.items()}
            print(f"{job.title}, batch {len(job.labels)}, {precision}, {arguments.threads} threads, one process, "
                  f"in turn\n\n| step | median | fastest | against plain | kept for backward | against plain |\n"
                  f"|---|---:|---:|---:|---:|---:|")  # fmt: skip
            base, plain = times["plain"], kept["plain"]
            for name, mine in times.items():
                ratios = statistics.median(mine) / statistics.median(base), min(mine) / min(base)
                print(f"| {name} | {1e3 * statistics.median(mine):.1f} ms | {1e3 * min(mine):.1f} ms "
                      f"| {ratios[0]:.3f} ({ratios[1]:.3f}) | {kept[name] / 1e6:.1f} MB "
                      f"| {kept[name] / plain:.2f} |")  # fmt: skip
            print("\nin brackets: of the fastest steps\n", flush=True)


class Step:
    """One training step of a job: plain, or through int8 as ``Quantize`` has it between ``begin`` and ``freeze``."""

    def __init__(self, job: Job, ranges: str | None, precision: str, *, device: str = "cpu") -> None:
        self.model, self.quantizers = job.build().train().to(device), None
        self.args, self.kwargs = map_tensors(lambda x: x.to(device), job.call)
        self.labels = job.labels.to(device)
        self.cast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bf16-mixed")
        args, kwargs = self.args, self.kwargs
        with torch.no_grad():
            for _ in range(10):  # settles the running statistics
                self.model(*args, **kwargs)
        if ranges is not None:
            quantize_(self.model, example_input=kwargs or args, ranges=ranges)
            self.quantizers = quantizers_of(self.model)
            self.quantizers.stage, self.quantizers.observing = Stage.OBSERVE, True
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self()
        if self.quantizers is not None:
            self.quantizers.stage = Stage.ON

    def __call__(self) -> None:
        """Forward, backward, optimizer, ranges."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.quantizers is not None and self.quantizers.observing:
            self.quantizers.update()

    def loss(self) -> Tensor:
        """Forward alone."""
        with self.cast():
            return F.cross_entropy(logits_of(self.model(*self.args, **self.kwargs)), self.labels)

    def bytes_kept(self) -> int:
        """Return the size of all storages that the backward pass waits for, parameters and buffers aside."""
        own = {x.untyped_storage().data_ptr() for x in (*self.model.parameters(), *self.model.buffers())}
        storages: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return x.detach()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = self.loss()
        assert loss.requires_grad  # all that was noted is still alive, so that no address was used twice
        return sum(size for address, size in storages.items() if address not in own)


def _in_turn(steps: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each step, its first ones aside; every other round runs backwards."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(WARM_UP + rounds):
        for name in order:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
        order.reverse()
    return {name: values[WARM_UP:] for name, values in times.items()}


def _ranges(arguments: argparse.Namespace) -> None:
    _synthetic_ranges()
    data = _data(seed=0)
    data.setup("fit")
    dense = _dense(0, data, arguments)
    expected, labels = predict(dense, data.test_dataloader(), threads=arguments.threads)

    def row(rule: str, models: Iterable[nn.Module], *, errors: bool) -> None:
        cells = []
        for model in models:
            logits = predict(model, data.test_dataloader(), threads=arguments.threads)[0]
            error = [f"{100 * _error(logits, expected):.3f} %"] if errors else []
            cells += [f"{_accuracy_of(logits, labels):.2f} %", *error]
        print(f"| {rule} | {' | '.join(cells)} |", flush=True)

    heads = " | ".join(f"{bits}-bit weights | error of logits" for bits in arguments.bits)
    print(f"\nResNet-20 width 16 at 14x14, {arguments.dense_epochs} dense epochs, one seed, float32 accuracy "
          f"{_accuracy_of(expected, labels):.2f} %; error: squared, relative to the dense model's\n\n"
          f"| after training, {CALIBRATION} images | {heads} |\n|---|{'---:|' * 2 * len(arguments.bits)}")  # fmt: skip
    images = _calibration(data)
    for rule in (name for name in RULES if not RULES[name].learned):
        models = (quantize_post_training(dense, images, ranges=rule, weight_bits=bits) for bits in arguments.bits)
        row(rule, models, errors=True)
    heads = " | ".join(f"{bits}-bit weights" for bits in arguments.bits)
    plain = copy.deepcopy(dense)
    _fit(plain, data, FINE_TUNING, arguments, 1)
    logits = predict(plain, data.test_dataloader(), threads=arguments.threads)[0]
    print(f"\none epoch more, {arguments.precision}; in floating point {_accuracy_of(logits, labels):.2f} %\n\n"
          f"| through int8 | {heads} |\n|---|{'---:|' * len(arguments.bits)}")  # fmt: skip
    for rule in TRAINED_RULES:
        models = (_through_int8(dense, data, arguments, 1, bits, ranges=rule) for bits in arguments.bits)
        row(rule, models, errors=False)


def _synthetic_ranges() -> None:
    """Print the squared error that each rule's range makes of values it has not seen."""
    found: dict[str, list[tuple[float, float]]] = {}
    kinds = _distributions()
    for draw in kinds.values():
        generator = torch.Generator().manual_seed(0)
        batches = [draw(generator) for _ in range(BATCHES)]
        fresh = torch.cat([draw(generator) for _ in range(4)])
        bulk = _bulk(fresh)
        for rule in RULES:
            rounded = fake_quantize(fresh, *_parameters(rule, batches))
            pair = _error(rounded.numpy(), fresh.numpy()), _error(rounded[bulk].numpy(), fresh[bulk].numpy())
            found.setdefault(rule, []).append(pair)
    for k, title in enumerate(("all values", "the 99 % of least magnitude")):
        print(f"\nsquared error of {title}, relative to their squares, in units of 1e-6\n\n"
              f"| rule | {' | '.join(kinds)} |\n|---|{'---:|' * len(kinds)}")  # fmt: skip
        for rule, pairs in found.items():
            print(f"| {rule} | {' | '.join(f'{1e6 * pair[k]:.4g}' for pair in pairs)} |")
    print(f"\n{BATCHES} batches of {BATCH:,} values to find a range; lsq: {LEARNING} steps on the squared error")


def _distributions() -> dict[str, Callable[[torch.Generator], Tensor]]:
    """Return activations by name; each call draws a batch."""

    def normal(generator: torch.Generator) -> Tensor:
        return torch.randn(BATCH, generator=generator)

    def outliers(generator: torch.Generator) -> Tensor:
        far = torch.rand(BATCH, generator=generator) < 0.001
        return torch.where(far, 50.0, 1.0) * normal(generator).relu()

    def laplace(generator: torch.Generator) -> Tensor:
        u = torch.rand(BATCH, generator=generator).sub_(0.5)
        return -u.sign() * torch.log1p(-2 * u.abs()).clamp_min(-20.0)

    def bimodal(generator: torch.Generator) -> Tensor:
        side = torch.rand(BATCH, generator=generator) < 0.5
        return torch.where(side, 4.0, -1.0) + 0.2 * normal(generator)

    return {
        "ReLU, outliers": outliers,
        "Laplace": laplace,
        "lognormal": lambda generator: normal(generator).exp(),
        "bimodal": bimodal,
        "GELU": lambda generator: F.gelu(normal(generator)),
        "uniform": lambda generator: torch.rand(BATCH, generator=generator),
    }


def _bulk(x: Tensor) -> Tensor:
    magnitude = x.abs()
    return magnitude <= magnitude.kthvalue(int(0.99 * len(x))).values


def _parameters(rule: str, batches: list[Tensor]) -> tuple[float, int]:
    """Return scale and zero point as calibration finds them; a learned range goes on from there."""
    quantizers = ActivationQuantizers(["x"], rule)
    quantizers.observing = True
    for batch in batches:
        quantizers.observe(0, batch)
        if quantizers.rule.estimate is None:
            quantizers.update()
    if quantizers.rule.estimate is not None:
        quantizers.update()
    quantizers.stage = Stage.ON
    for k in range(LEARNING if quantizers.learns else 0):
        x = batches[k % len(batches)].clone().requires_grad_()
        (quantizers.learned(0, x) - x.detach()).square().mean().backward()
        quantizers.update()
    assert quantizers.parameters_of[0] is not None
    return quantizers.parameters_of[0]


def _agreement(arguments: argparse.Namespace) -> None:
    data = _data(seed=0)
    data.setup("fit")
    dense = _dense(0, data, arguments)
    models = {
        "one epoch through int8": _through_int8(dense, data, arguments, 1, 8),
        "after training": quantize_post_training(dense, _calibration(data)),
    }
    for title, model in models.items():
        expected = predict(model, data.test_dataloader(), threads=arguments.threads)[0]
        print(f"\nResNet-20 width 16 at 14x14, quantized {title}: fake-quantized PyTorch against\n\n"
              f"| | logits that differ, of {expected.size:,} | largest difference | answers that differ, of "
              f"{len(expected):,} |\n|---|---:|---:|---:|")  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            ways = {"PyTorch, quantize and dequantize": partial(convert, model)}
            found: dict[str, float | str] = {}
            for name, target in TARGETS.items():
                ways[name] = partial(export, model, IMAGE, Path(folder) / f"model{target.suffix}", target=name)
            for name, make in ways.items():
                try:
                    logits = predict(make(), data.test_dataloader(), threads=1)[0]
                except Exception as error:  # a runtime that is not installed, or fails, is named
                    print(f"| {name} | not compared: {_reason(error)} | | |", flush=True)
                    found[name] = _reason(error)
                    continue
                differ, flips = (logits != expected).sum(), (logits.argmax(1) != expected.argmax(1)).sum()
                print(f"| {name} | {differ:,} | {np.abs(logits - expected).max():.2g} | {flips} |", flush=True)
                found[name] = float(flips)
        claim = f"answers of {len(expected):,} in which the file and fake-quantized PyTorch differ, quantized {title}"
        row = Row("exact", f"{claim}; onnxruntime, then other runtimes", "answers", found.pop("onnx"), found)
        add_row(arguments.json, replace(row, command=command()))
    print(f"\nthe largest logit is {np.abs(expected).max():.3g}; LiteRT and ExecuTorch compute the last layer in float")


def _speed(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    data = _data(seed=0)
    data.setup("fit")
    images, labels = next(iter(data.test_dataloader()))
    resnet = replace(_resnet_job(32), call=as_call(images[:32]), labels=labels[:32])
    _race(resnet, [BatchFormat().split(batch).call for batch in _calibration(data)], (1, 32), arguments)
    _race(_encoder_job(1), [as_call(_texts(8)) for _ in range(4)], (1,), arguments)


def _kernels(arguments: argparse.Namespace) -> None:
    data = _data(seed=0)
    data.setup("fit")
    job, calibration = _resnet_job(1), [BatchFormat().split(batch).call for batch in _calibration(data)]
    runs = 5 if arguments.quick else 100
    print(f"\n{job.title}, one thread: microseconds in onnxruntime's kernels, medians of {runs} calls\n")
    print("| | all |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(job, calibration, Path(folder))
        for batch in (1, 32):
            times: dict[str, Counter[str]] = {}
            for name in ("onnxruntime, float32", "onnxruntime, int8 by lighten", "onnxruntime, int8 by itself"):
                times[name] = _kernel_times(ways[name](), batch, runs)
                parts = ", ".join(f"{operator} {took:.0f}" for operator, took in times[name].most_common())
                print(f"| batch {batch}, {name} | {times[name].total():.0f}: {parts} |", flush=True)
            plain, int8, _ = times.values()
            whole, most = plain.total() / int8.total(), plain.total() / int8["QLinearConv"]
            print(f"| batch {batch}, int8 faster | {whole:.2f} x; were all but its convolutions free: {most:.2f} x |")


def _kernel_times(path: Path, batch: int, runs: int) -> "Counter[str]":
    """Return an operator's share of one call, in microseconds, by onnxruntime's own profile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(path.with_suffix(f".{batch}"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(batch, *IMAGE.shape[1:])).astype(np.float32)
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: images})
    took: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            took.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    total: Counter[str] = Counter()
    for (operator, _), durations in took.items():
        total[operator] += statistics.median(durations)
    return total


def _race(job: Job, calibration: list[Call], sizes: tuple[int, ...], arguments: argparse.Namespace) -> None:
    batches = {f"batch {size}": _first(job.call, size) for size in sizes}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runners: dict[str, Any] = {}
        facts: dict[str, str] = {}
        sizes_of: dict[str, float] = {}
        failed: dict[str, str] = {}
        with open_runner(job.build()) as runner:
            expected = runner.run(job.call)
        for name, make in _ways(job, calibration, Path(folder)).items():
            try:
                file = make()
                runner = stack.enter_context(open_runner(file, threads=1))
                logits = runner.run(runner.feed(job.call))
                facts[name] = f"{_bytes(file) / 1e3:.1f} kB | {100 * _error(logits, expected):.2g} %"
                runners[name], sizes_of[name] = runner, _bytes(file) / 1e3
            except Exception as error:  # a runtime that is not installed, or fails, is named
                print(f"{name}: not measured: {_reason(error)}", flush=True)
                failed[name] = _reason(error)
        found = interleaved_latency(runners, batches, seconds=0.5 if arguments.quick else 20.0)
    heads = " | ".join(f"{batch} | its float | onnxruntime's float" for batch in batches)
    print(f"\n{job.title}, one thread, all in turn, medians; then times as fast as the runtime's own float file, and "
          "as onnxruntime's; error of the logits: squared, relative to the float model's in PyTorch\n\n"
          f"| | file | error | {heads} |\n|---|---:|---:|{'---:|' * 3 * len(batches)}")  # fmt: skip
    for name, mine in found.items():
        cells = []
        for batch in batches:
            took = mine[batch]["median"]
            bases = (found.get(f"{runtime}, float32") for runtime in (name.partition(",")[0], "onnxruntime"))
            cells += [f"{took:.3f} ms", *(f"{base[batch]['median'] / took:.2f} x" if base else "" for base in bases)]
        print(f"| {name} | {facts[name]} | {' | '.join(cells)} |", flush=True)
    for batch in batches:
        medians = {name: float(mine[batch]["median"]) for name, mine in found.items()}
        above = {name: float(mine[batch]["p90"]) - medians[name] for name, mine in found.items()}
        _note_race(f"latency of int8 files, {job.title}, {batch}", "ms", medians, failed, above, arguments)
    _note_race(f"size of int8 files, {job.title}", "kB", sizes_of, failed, {}, arguments)


def _note_race(
    claim: str,
    unit: str,
    figures: Mapping[str, float],
    failed: Mapping[str, str],
    spread: Mapping[str, float],
    arguments: argparse.Namespace,
) -> None:
    ours = "onnxruntime, int8 by lighten"
    others = {name: value for name, value in {**figures, **failed}.items() if name != ours}
    spread = {"lighten" if name == ours else name: value for name, value in spread.items()}
    mine = figures.get(ours, failed.get(ours, "not measured"))
    add_row(arguments.json, Row("speed", claim, unit, mine, others, spread, command=command()))


def _ways(job: Job, calibration: list[Call], folder: Path) -> dict[str, Callable[[], Path]]:
    """Return how each file of a job's network is made, by runtime and kind."""
    model = job.build().eval()
    batches = [call[1] or call[0] for call in calibration]
    int8 = quantize_post_training(model, batches)
    example = _first(job.call, 1)
    given = example[1] or example[0]
    original = folder / "float.onnx"
    ways: dict[str, Callable[[], Path]] = {
        "onnxruntime, float32": lambda: export_onnx(model, given, original),
        "onnxruntime, int8 by lighten": lambda: export_onnx(int8, given, folder / "int8.onnx"),
        "onnxruntime, int8 by itself": lambda: _their_static(original, calibration, folder / "their-static.onnx"),
        "onnxruntime, dynamic by lighten": lambda: export_onnx(
            quantize_post_training(model, mode="dynamic"), given, folder / "dynamic.onnx"
        ),
        "onnxruntime, dynamic by itself": lambda: _their_dynamic(original, folder / "their-dynamic.onnx"),
    }
    for name, target in TARGETS.items():
        if name != "onnx":
            for kind, one in (("float32", model), ("int8", int8)):
                ways[f"{name}, {kind}"] = partial(export, one, given, folder / f"{kind}{target.suffix}", target=name)
    return ways


def _their_static(original: Path, calibration: list[Call], path: Path) -> Path:
    """Quantize a float file as onnxruntime does, on the same calibration data."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    feeds = iter([OnnxRunner(original).feed(call) for call in calibration])

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(feeds, None)

    with silent():
        quantize_static(
            _prepared(original), path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    return path


def _their_dynamic(original: Path, path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silent():
        quantize_dynamic(_prepared(original), path, per_channel=True, weight_type=QuantType.QInt8)
    return path


def _prepared(original: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = original.with_suffix(".prepared.onnx")
    with contextlib.chdir(original.parent):  # it leaves files behind
        try:
            quant_pre_process(str(original), str(path))
        except Exception:  # of shapes that it cannot infer from symbols
            quant_pre_process(str(original), str(path), skip_symbolic_shape=True)
    return path


def _accuracy(arguments: argparse.Namespace) -> None:
    accuracy: dict[str, list[float]] = {}
    weight: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            data = _data(seed)
            data.setup("fit")
            for name, file in _contestants(seed, data, Path(folder), arguments):
                logits, labels = predict(file, data.test_dataloader(), threads=arguments.threads)
                accuracy.setdefault(name, []).append(_accuracy_of(logits, labels))
                weight[name] = _bytes(file)
                print(f"  seed {seed}, {name}: {accuracy[name][-1]:.2f} %", flush=True)
    base = accuracy["float32, trained on"]
    print(f"ResNet-20 width 16 at 14x14, {arguments.precision}, {arguments.epochs} more epochs after "
          f"{arguments.dense_epochs} dense ones, {arguments.seeds} seeds, 2,000 test images, files in onnxruntime\n\n"
          "| model | accuracy | against float32, trained on | file |\n|---|---:|---:|---:|")  # fmt: skip
    for name, values in accuracy.items():
        differences = [mine - other for mine, other in zip(values, base, strict=True)]
        against = "" if values is base else f"{_spread(differences, sign='+')} points"
        print(f"| {name} | {_spread(values)} % | {against} | {weight[name] / 1e3:.1f} kB |")
    ours = f"trained through int8, {arguments.bits[0]}-bit weights"
    row = Row(
        "accuracy", "ResNet-20 at 14x14 through int8 and after training, files in onnxruntime", "%",
        statistics.mean(accuracy[ours]), {n: statistics.mean(v) for n, v in accuracy.items() if n != ours},
        {"lighten" if n == ours else n: deviation(v) for n, v in accuracy.items()}, "higher", command(),
    )  # fmt: skip
    add_row(arguments.json, row)


def _contestants(seed: int, data: Any, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Make the files of one seed: from one dense model, without training and with."""
    dense, images = _dense(seed, data, arguments), _calibration(data)

    def file(model: nn.Module) -> Path:
        return export_onnx(model, IMAGE, folder / "model.onnx")

    original = export_onnx(dense, IMAGE, folder / "float.onnx")
    yield "float32, dense", original
    for mode in ("float16", "dynamic"):
        yield f"dense, {mode}", file(quantize_post_training(dense, mode=mode))
    for bits in arguments.bits:
        yield f"dense, static, {bits}-bit weights", file(quantize_post_training(dense, images, weight_bits=bits))
    calls = [BatchFormat().split(batch).call for batch in images]
    yield "dense, static by onnxruntime", _their_static(original, calls, folder / "their-static.onnx")
    plain = copy.deepcopy(dense)
    _fit(plain, data, FINE_TUNING, arguments, arguments.epochs)
    yield "float32, trained on", file(plain)
    for bits in arguments.bits:
        trained = _through_int8(dense, data, arguments, arguments.epochs, bits)
        yield f"trained through int8, {bits}-bit weights", file(trained)


def _dense(seed: int, data: Any, arguments: argparse.Namespace) -> nn.Module:
    """Return the float model of a seed, trained once; ``pruning.py`` begins with the same ones."""
    epochs = arguments.dense_epochs
    parts = {"seed": seed, "data": data.fingerprint, "optimizer": DENSE, "epochs": epochs,
             "precision": arguments.precision}  # fmt: skip
    parts |= {"batches": arguments.batches} if arguments.batches else {}
    train = partial(_fit, data=data, optimizer=DENSE, arguments=arguments, epochs=epochs)
    return reference(arguments.cache, partial(_build, seed), train, fingerprint_of(**parts))


def _through_int8(
    dense: nn.Module, data: Any, arguments: argparse.Namespace, epochs: int, bits: int, **settings: Any
) -> nn.Module:
    model = copy.deepcopy(dense)
    _fit(model, data, FINE_TUNING, arguments, epochs, [Quantize(**THROUGH_INT8, weight_bits=bits, **settings)])
    return model


def _resnet_job(batch: int, *, width: int = 16) -> Job:
    images = torch.randn(batch, 1, 28, 28).to(memory_format=torch.channels_last)
    build = partial(_build, 0, stem_stride=1, width=width)
    return Job(f"ResNet-20 width {width} at 28x28", build, as_call(images), torch.randint(0, 10, (batch,)))


def _encoder_job(batch: int, *, width: int = 256, layers: int = 2) -> Job:
    with silent():  # it looks for packages that are of no use here
        from transformers import DistilBertConfig, DistilBertForSequenceClassification

    settings = DistilBertConfig(
        vocab_size=WORDS, dim=width, n_layers=layers, n_heads=width // 64, hidden_dim=4 * width, num_labels=10,
        max_position_embeddings=LENGTH,
    )  # fmt: skip

    def build() -> nn.Module:
        torch.manual_seed(0)
        return DistilBertForSequenceClassification(settings)

    title = f"encoder ({layers} layers, width {width}, length {LENGTH})"
    return Job(title, build, as_call(_texts(batch)), torch.randint(0, 10, (batch,)))


def _texts(batch: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(5, WORDS, (batch, LENGTH)),
        "attention_mask": torch.ones(batch, LENGTH, dtype=torch.long),
    }


def _calibration(data: Any) -> list[tuple[Tensor, Tensor]]:
    """Return held-out images in batches, without augmentation."""
    images, labels = (torch.cat(parts)[:CALIBRATION] for parts in zip(*data.val_dataloader(), strict=True))
    return list(zip(images.split(128), labels.split(128), strict=True))


def _first(call: Call, size: int) -> Call:
    """Return the first samples of a call."""
    return tuple(x[:size] for x in call[0]), {name: x[:size] for name, x in call[1].items()}


def _accuracy_of(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((logits.argmax(1) == labels).mean())


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the squared error of ``found``, relative to the squares of ``expected``."""
    return float(np.square(found - expected, dtype=np.float64).sum() / np.square(expected, dtype=np.float64).sum())


def _spread(values: list[float], *, sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


def _bytes(path: Path) -> int:
    """Return the size of a file and of what belongs to it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" else 0)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


if __name__ == "__main__":
    main()
