"""What int8 training costs beside other libraries: ``python benchmarks/quantization_peers.py [--batch 128 32]``.

One training step of ResNet-20 (width 16, 28×28, float32): plain, fake-quantized by ``lighten``, and fake-quantized by
each peer in the way that its own documentation shows, int8 weights per channel and int8 activations. Each has a process
of its own, so that libraries do not meet; the processes take turns step by step, in an order that is drawn anew each
round, so that what disturbs one disturbs all. A step is forward, backward, optimizer, and what the library wants after
it. All start from the same weights and settled running statistics. Ranges differ: ``lighten``, torchao, FX and
coreai-opt observe in every step, NNCF and brevitas learn them as parameters, ModelOpt keeps those of its calibration.
NNCF compiles its kernels when it runs for the first time, which takes ``ninja`` on the path and a C++ compiler.

Before anything is timed, one forward is watched operator by operator: how many of the 22 convolutions and linear layers
have weights on an int8 grid (per output channel), how many have inputs on one, how many of the 9 residual adds have an
operand on one, and how many batch norms compute batch statistics. A contestant without quantized weights or inputs, or
one whose weights get no gradient, is named and not timed; so is one that is not installed or fails.
"""

import argparse
import contextlib
import importlib.metadata
import math
import multiprocessing as mp
import os
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import Row, add_row, command, width
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lighten import build_model

WARM_UP, CALIBRATION, PATIENCE = 10, 2, 900
ADDS = 9
PLAIN = "plain float32"
aten = torch.ops.aten


@dataclass
class Trainee:
    """A model in training mode, what to call after each step, the norm of gradients, and what must stay alive."""

    model: nn.Module
    after_step: Callable[[], object] = lambda: None
    clip: float = math.inf
    alive: Any = None


def plain(model: nn.Module, example: Tensor) -> Trainee:
    return Trainee(model)


def lighten(model: nn.Module, example: Tensor) -> Trainee:
    from lighten.quantization.activation_quantizers import Stage, quantizers_of
    from lighten.quantization.insert import quantize_

    quantize_(model, example_input=example)
    quantizers = quantizers_of(model)
    quantizers.stage, quantizers.observing = Stage.OBSERVE, True
    model(example)
    quantizers.update()
    quantizers.stage = Stage.ON
    return Trainee(model, quantizers.update)


def torchao_x86(model: nn.Module, example: Tensor) -> Trainee:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    return _pt2e(model, example, X86InductorQuantizer(), get_default_x86_inductor_quantization_config(is_qat=True))


def torchao_xnnpack(model: nn.Module, example: Tensor) -> Trainee:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    settings = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return _pt2e(model, example, XNNPACKQuantizer(), settings)


def torchao_xnnpack_frozen(model: nn.Module, example: Tensor) -> Trainee:
    trainee = torchao_xnnpack(model, example)
    for node in trainee.model.graph.nodes:
        if node.target == aten.batch_norm.default:
            node.args = (*node.args[:5], False, *node.args[6:])
    trainee.model.recompile()
    return trainee


def torch_fx(model: nn.Module, example: Tensor) -> Trainee:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    return Trainee(prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (example,)))


def torch_fx_frozen(model: nn.Module, example: Tensor) -> Trainee:
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats

    trainee = torch_fx(model, example)
    trainee.model.apply(freeze_bn_stats)
    return trainee


def nncf(model: nn.Module, example: Tensor) -> Trainee:
    import nncf

    quantized = nncf.quantize(model.eval(), nncf.Dataset([example] * CALIBRATION), subset_size=CALIBRATION)
    return Trainee(quantized.train())


def brevitas(model: nn.Module, example: Tensor) -> Trainee:
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import COMPUTE_LAYER_MAP, preprocess_for_quantize, quantize
    from brevitas.quant import Int8WeightPerChannelFloat

    layers = dict(COMPUTE_LAYER_MAP)
    for kind in (nn.Conv2d, nn.Linear):
        layer, settings = layers[kind]
        layers[kind] = layer, {**settings, "weight_quant": Int8WeightPerChannelFloat}
    quantized = quantize(preprocess_for_quantize(model), compute_layer_map=layers)
    with torch.no_grad(), calibration_mode(quantized):
        for _ in range(CALIBRATION):
            quantized(example)
    return Trainee(quantized.train())


def modelopt(model: nn.Module, example: Tensor) -> Trainee:
    import modelopt.torch.quantization as mtq

    return Trainee(mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda quantized: quantized(example)))


def coreai_graph(model: nn.Module, example: Tensor) -> Trainee:
    return _coreai(model, example, "graph")


def coreai_eager(model: nn.Module, example: Tensor) -> Trainee:
    return _coreai(model, example, "eager")


CONTESTANTS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Trainee]]] = {
    PLAIN: ("torch", plain),
    "lighten": ("lighten", lighten),
    "torchao PT2E, X86Inductor": ("torchao", torchao_x86),
    "torchao PT2E, XNNPACK": ("torchao", torchao_xnnpack),
    "torchao PT2E, XNNPACK, norms frozen": ("torchao", torchao_xnnpack_frozen),
    "torch.ao FX": ("torch", torch_fx),
    "torch.ao FX, norms frozen": ("torch", torch_fx_frozen),
    "NNCF": ("nncf", nncf),
    "brevitas": ("brevitas", brevitas),
    "ModelOpt": ("nvidia-modelopt", modelopt),
    "coreai-opt, graph": ("coreai-opt", coreai_graph),
    "coreai-opt, eager": ("coreai-opt", coreai_eager),
}
"""What is measured: name in the table, distribution, and how it makes a model in training mode."""


@dataclass
class Witness(TorchDispatchMode):
    """Sees every operator of a forward and notes which operands lie on an int8 grid."""

    shapes: list[torch.Size] = field(default_factory=list)
    weights: list[bool] = field(default_factory=list)
    inputs: list[bool] = field(default_factory=list)
    adds: int = 0
    batch_statistics: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note its operands."""
        out = func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            self._layer(args[0], args[1])
        elif func is aten.addmm.default:
            self._layer(args[1], args[2].T)
        elif func is aten.add.Tensor and _are_maps(*args[:2]):
            # a sum on the grid of its operand is a library's own arithmetic; a residual's sum leaves both grids
            self.adds += any(map(on_grid, args[:2])) and not on_grid(out)
        elif func in (aten.native_batch_norm.default, aten._native_batch_norm_legit.default):
            self.batch_statistics += bool(args[5])
        return out

    def summary(self) -> str:
        """Return four columns: weights, inputs, adds on a grid, batch norms with batch statistics."""
        counts = [f"{sum(found)}/{len(found)}" for found in (self.weights, self.inputs)]
        return "".join(f"{count:>9}" for count in (*counts, f"{self.adds}/{ADDS}", self.batch_statistics))

    def _layer(self, x: Tensor, weight: Tensor) -> None:
        self.inputs.append(on_grid(x))
        self.shapes.append(weight.shape)
        self.weights.append(all(map(on_grid, weight)))


def on_grid(x: Tensor) -> bool:
    """Return whether all values are multiples, by at most 255, of one number."""
    distinct = x.detach().double().unique()
    highest = distinct.abs().max()
    if len(distinct) > 256 or highest == 0:
        return False
    codes = distinct / highest * torch.arange(1, 256)[:, None]
    return bool(((codes - codes.round()).abs().amax(1) < 1e-3).any())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--steps", type=int, default=60, help=f"each; the first {WARM_UP} are left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contiguous", action="store_true", help="images and weights NCHW instead of channels last")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="of a name in the table")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    names = [
        name for name in CONTESTANTS if name == PLAIN or any(part.lower() in name.lower() for part in arguments.only)
    ]
    for batch in arguments.batch:
        times, notes = _measure(names, batch, arguments)
        _print(times, notes, batch, arguments)
        _note(times, notes, batch, arguments)


def _measure(names: list[str], batch: int, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    context = mp.get_context("spawn")
    jobs, notes, times = {}, {}, {}
    for name in names:
        here, there = context.Pipe()
        job = context.Process(target=_job, args=(name, batch, arguments, there), daemon=True)
        job.start()
        there.close()
        kind, notes[name] = _answer(here, job)
        if kind == "ready":
            jobs[name], times[name] = (here, job), []
    order = random.Random(0)
    for _ in range(arguments.steps):
        for name in order.sample(list(jobs), len(jobs)):
            jobs[name][0].send("step")
            kind, value = _answer(*jobs[name])
            if kind == "took":
                times[name].append(value)
            else:
                notes[name] = value
                del jobs[name], times[name]
    for here, job in jobs.values():
        here.close()
        job.join()
    dropped = min(WARM_UP, arguments.steps // 4)
    return {name: values[dropped:] for name, values in times.items()}, notes


def _answer(here: Any, job: Any) -> tuple[str, Any]:
    try:
        if here.poll(PATIENCE):
            return here.recv()
        job.kill()
        return "failed", f"no answer in {PATIENCE} s"
    except (EOFError, OSError):
        job.join()
        return "failed", f"the process ended with exit code {job.exitcode}"


def _job(name: str, batch: int, arguments: argparse.Namespace, there: Any) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    try:
        step, note = _prepare(name, batch, _layout(arguments))
        there.send(("ready", note))
        while there.recv() == "step":
            time.sleep(0.01)  # threads of the one before stop spinning
            begun = time.perf_counter()
            step()
            there.send(("took", time.perf_counter() - begun))
    except EOFError:
        pass
    except BaseException as error:
        reason = " ".join(str(error).split())
        there.send(("failed", f"{type(error).__name__}: {reason[:150]}"))


def _prepare(name: str, batch: int, layout: torch.memory_format) -> tuple[Callable[[], None], str]:
    torch.manual_seed(0)
    images = torch.randn(batch, 1, 28, 28).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))
    model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=16)
    model = model.to(memory_format=layout).train()
    with torch.no_grad():
        for _ in range(10):
            model(images)
    trainee = CONTESTANTS[name][1](model, images)
    optimizer = torch.optim.SGD(trainee.model.parameters(), lr=0.001, momentum=0.9)

    def step() -> None:
        loss = F.cross_entropy(trainee.model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainee.after_step()

    return step, _inspect(trainee, images, labels, quantized=name != PLAIN)


def _inspect(trainee: Trainee, images: Tensor, labels: Tensor, *, quantized: bool) -> str:
    with Witness() as witness:
        logits = trainee.model(images)
    F.cross_entropy(logits, labels).backward()
    trainee.after_step()
    if quantized and not (any(witness.weights) and any(witness.inputs)):
        raise RuntimeError("it does not fake-quantize: no weights or no inputs on an int8 grid")
    gradients = [(x.shape, x.grad) for x in trainee.model.parameters() if x.grad is not None]
    unmoved = Counter(witness.shapes) - Counter(shape for shape, gradient in gradients if gradient.any())
    if unmoved:
        raise RuntimeError(f"no gradient reaches {unmoved.total()} of {len(witness.shapes)} weights")
    return witness.summary()


def _layout(arguments: argparse.Namespace) -> torch.memory_format:
    return torch.contiguous_format if arguments.contiguous else torch.channels_last


def _are_maps(*operands: Any) -> bool:
    shapes = [x.shape for x in operands if isinstance(x, Tensor)]
    return len(shapes) == 2 and len(shapes[0]) == 4 and shapes[0] == shapes[1]


def _pt2e(model: nn.Module, example: Tensor, quantizer: Any, settings: Any) -> Trainee:
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    exported = torch.export.export(model, (example,)).module()
    return Trainee(move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer.set_global(settings))))


def _coreai(model: nn.Module, example: Tensor, mode: str) -> Trainee:
    from coreai_opt.quantization import Quantizer, QuantizerConfig

    quantizer = Quantizer(model, QuantizerConfig().set_execution_mode(mode))
    prepared = quantizer.prepare((example,))
    training = contextlib.ExitStack()
    training.enter_context(quantizer.training_mode())
    return Trainee(prepared, alive=training)


def _print(times: dict[str, list[float]], notes: dict[str, str], batch: int, arguments: argparse.Namespace) -> None:
    if PLAIN not in times:
        raise SystemExit(f"{PLAIN} failed: {notes[PLAIN]}")
    base, ruler = times[PLAIN], "ms, median (10..90 %)"
    heads = "".join(f"{head:>9}" for head in ("median", "fastest", "weights", "inputs", "adds", "norms"))
    print(
        f"ResNet-20, width 16, 28x28, batch {batch}, float32, {str(_layout(arguments)).removeprefix('torch.')}, "
        f"{arguments.threads} threads, {min(map(len, times.values()))} steps each\n{'':48}{ruler:>25}{heads}"
    )
    for name, note in notes.items():
        title = f"{name} ({_version(CONTESTANTS[name][0])})"
        if name not in times:
            print(f"{title:48} not measured: {note}")
            continue
        mine = times[name]
        low, *_, high = statistics.quantiles(mine, n=10)
        print(
            f"{title:48}{1e3 * statistics.median(mine):8.1f} {f'({1e3 * low:.1f}..{1e3 * high:.1f})':>16}"
            f"{statistics.median(mine) / statistics.median(base):9.2f}{min(mine) / min(base):9.2f}{note}"
        )
    print("median, fastest: ratios to plain; then what lies on an int8 grid, and batch norms with batch statistics\n")


def _note(times: dict[str, list[float]], notes: dict[str, str], batch: int, arguments: argparse.Namespace) -> None:
    base = statistics.median(times[PLAIN])
    figures = {
        name: statistics.median(times[name]) / base if name in times else _why(name, words)
        for name, words in notes.items()
        if name != PLAIN
    }
    row = Row(
        "step", f"training step of ResNet-20 through int8, batch {batch}, against the plain step", "x",
        figures.pop("lighten", "not asked"), figures,
        {name: width(values) / base for name, values in times.items() if name != PLAIN}, command=command(),
    )  # fmt: skip
    add_row(arguments.json, row)


def _why(name: str, words: str) -> str:
    """Return why a peer has no figure; what is missing is named by what to install."""
    distribution = CONTESTANTS[name][0]
    return words if _version(distribution) != "not installed" else f"not installed: pip install {distribution}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
