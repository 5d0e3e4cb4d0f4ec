"""Accuracy through int8 after equal steps, and the files: ``python benchmarks/quantization_accuracy.py [--only …]``.

All start from the same dense ResNet-20 (width 16, 14×14), see the same batches of 100 images in the same order, and
take the same steps of SGD with one cosine; each as ``quantization_peers.py`` sets it up, in a process of its own.
``lighten`` begins at a third of the steps, freezes its ranges at nine tenths and clips gradients at a norm of 1, as its
documentation asks of SGD with momentum; it is also asked to begin at the first step, as all others do, unclipped.
Scored are 2,000 test images, by the fake-quantized model in evaluation mode, whose observers are off; then the file
that each library's documentation makes of it: how many answers differ. A library without a file that runs here is
scored alone.
"""

import argparse
import contextlib
import math
import multiprocessing as mp
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pruning import DENSE_EPOCHS, _build, _data
from quantization import _dense
from quantization_peers import CONTESTANTS, PLAIN, Trainee, _why
from rows import Row, add_row, command, deviation
from torch import Tensor, nn

from lighten import export_onnx
from lighten.training.fit import resolve_precision

BATCH, PATIENCE, TESTS = 100, 1800, 2000
"""Images of every batch, as exported graphs have one size; seconds that one may take."""
FIRST_STEP = "lighten, int8 from the first step"
NAMES = (PLAIN, "lighten", FIRST_STEP, "torchao PT2E, XNNPACK", "torch.ao FX", "NNCF", "brevitas", "ModelOpt",
         "coreai-opt, graph")  # fmt: skip


def lighten(model: nn.Module, example: Tensor, steps: int) -> Trainee:
    """Insert quantizers, and let them begin and freeze when ``Quantize`` does."""
    from lighten.quantization.activation_quantizers import Stage, quantizers_of
    from lighten.quantization.insert import quantize_

    quantize_(model, example_input=example)
    quantizers, begin, freeze = quantizers_of(model), round(0.34 * steps), round(0.9 * steps)
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        if quantizers.observing:
            quantizers.update()
            quantizers.stage = Stage.ON
        if done >= begin and quantizers.stage == Stage.OFF:
            quantizers.stage = Stage.OBSERVE
        quantizers.observing = begin <= done < freeze

    return Trainee(model, after_step, clip=1.0)


def onnx_by_lighten(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    return _onnx(export_onnx(model, example[:1], folder / "lighten.onnx"))


def pte_by_torchao(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    program = torch.export.export(convert_pt2e(model), (example,))
    path = folder / "torchao.pte"
    path.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda x: method.execute([x])[0]


def converted_fx(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    from torch.ao.quantization.quantize_fx import convert_fx

    return convert_fx(model)


def openvino_by_nncf(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    import nncf
    import openvino as ov

    compiled = ov.Core().compile_model(ov.convert_model(nncf.strip(model), example_input=example), "CPU")
    return lambda x: compiled(x.numpy())[0]


def qcdq_by_brevitas(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    from brevitas.export import export_onnx_qcdq

    export_onnx_qcdq(model, args=example, export_path=str(folder / "brevitas.onnx"))
    return _onnx(folder / "brevitas.onnx")


def onnx_by_modelopt(model: nn.Module, example: Tensor, folder: Path) -> Callable[[Tensor], Any]:
    path = folder / "modelopt.onnx"
    torch.onnx.export(model, (example,), path, dynamo=False, opset_version=17)
    return _onnx(path)


FILES: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], Callable[[Tensor], Any]]]] = {
    "lighten": ("onnxruntime", onnx_by_lighten),
    "torchao PT2E, XNNPACK": ("ExecuTorch", pte_by_torchao),
    "torch.ao FX": ("converted, in PyTorch", converted_fx),
    "NNCF": ("OpenVINO", openvino_by_nncf),
    "brevitas": ("onnxruntime", qcdq_by_brevitas),
    "ModelOpt": ("onnxruntime", onnx_by_modelopt),
}
"""What a library's documentation delivers: where it runs, and how it is made."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2, help="through int8")
    parser.add_argument("--dense-epochs", type=int, default=DENSE_EPOCHS, help="of the models that are quantized")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", help="of the dense models: auto, 32-true, bf16-mixed")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="of a name in the table")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="where dense models stay")
    parser.add_argument("--quick", action="store_true", help="a few steps from random weights; figures mean nothing")
    parser.add_argument("--json", type=Path, help="rows of the table that python -m benchmarks writes")
    arguments = parser.parse_args()
    arguments.precision = str(resolve_precision(arguments.precision))
    arguments.batches = 0
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    names = [n for n in NAMES if n == PLAIN or any(part.lower() in n.lower() for part in arguments.only)]
    scores: dict[str, list[float]] = {name: [] for name in names}
    flips: dict[str, list[float]] = {name: [] for name in names if name in FILES}
    failed: dict[str, str] = {}
    unfiled: dict[str, str] = {}
    for seed in range(1 if arguments.quick else arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            _prepare(seed, Path(folder), arguments)
            for name in names:
                found = _asked(name, seed, Path(folder), arguments)
                words = ", ".join(f"{key} {value}" for key, value in found.items())
                print(f"  seed {seed}, {name}: {words}", flush=True)
                if "accuracy" in found:
                    scores[name].append(found["accuracy"])
                    flips.get(name, []).extend([found["flips"]] if "flips" in found else [])
                else:
                    failed[name] = found["error"]
                if name in flips and "flips" not in found:
                    unfiled[name] = found.get("file") or found["error"]
                claim = "ResNet-20 at 14x14 through int8, equal steps, the same batches and learning rates"
                _note(claim, "%", "higher", scores, failed, arguments)
                where = ", ".join(dict.fromkeys(FILES[name][0] for name in flips))
                claim = f"answers of {TESTS:,} in which a library's file and its fake-quantized model differ ({where})"
                _note(claim, "answers", "lower", flips, unfiled, arguments)
    for title, found_of in (("accuracy, %", scores), ("answers that differ", flips)):
        print(f"\n| {title} | |\n|---|---:|")
        for name, values in found_of.items():
            print(
                f"| {name} | {statistics.mean(values):.2f} ± {deviation(values):.2f} |" if values else f"| {name} | |"
            )


def _note(
    claim: str, unit: str, better: str, found: dict[str, list[float]], failed: dict[str, str], arguments: Any
) -> None:
    figures: dict[str, float | str] = {name: statistics.mean(v) for name, v in found.items() if v}
    wide = {name: deviation(v) for name, v in found.items() if v}
    figures |= {name: words for name, words in failed.items() if name not in figures}
    mine = figures.pop("lighten", "not asked yet")
    add_row(arguments.json, Row("equal steps", claim, unit, mine, figures, wide, better, command()))


def _prepare(seed: int, folder: Path, arguments: argparse.Namespace) -> None:
    """Write down what all begin with: weights, images in one order an epoch, test images."""
    data = _data(seed)
    data.setup("fit")
    dense = _build(seed) if arguments.quick else _dense(seed, data, arguments)
    train, test = (
        [torch.cat(parts) for parts in zip(*loader, strict=True)]
        for loader in (data.train_dataloader(), data.test_dataloader())
    )
    torch.save({"weights": dense.state_dict(), "train": train[:2], "test": test[:2]}, folder / "given.pt")


def _asked(name: str, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a contestant makes of it, in a process of its own."""
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(name, seed, folder, arguments, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(PATIENCE) else {"error": f"no answer in {PATIENCE} s"}
    except EOFError:
        process.join()
        return {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _work(name: str, seed: int, folder: Path, arguments: argparse.Namespace, there: Any) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    try:
        there.send(_train_and_score(name, seed, folder, arguments))
    except BaseException as error:
        there.send({"error": _why("lighten" if name == FIRST_STEP else name, _reason(error))})


def _train_and_score(name: str, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    given = torch.load(folder / "given.pt")
    images, labels = given["train"]
    epochs = 1 if arguments.quick else arguments.epochs
    steps = 6 if arguments.quick else epochs * (len(images) // BATCH)
    model = _build(seed)
    model.load_state_dict(given["weights"])
    model.train()
    make = {"lighten": partial(lighten, steps=steps), FIRST_STEP: CONTESTANTS["lighten"][1]}.get(name)
    trainee = (make or CONTESTANTS[name][1])(model, images[:BATCH])
    optimizer = torch.optim.SGD(trainee.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
    draw, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=draw)
        picked, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        F.cross_entropy(trainee.model(images[picked]), labels[picked]).backward()
        if trainee.clip < math.inf:
            nn.utils.clip_grad_norm_(trainee.model.parameters(), trainee.clip)
        optimizer.step()
        schedule.step()
        trainee.after_step()
    model = _evaluating(trainee)
    test, truth = given["test"]
    answers = _answers(model, test)
    found = {"accuracy": 100 * float((answers == truth.numpy()).mean())}
    if name in FILES:
        try:
            run = FILES[name][1](model, images[:BATCH], folder)
            found["flips"] = float((_answers(run, test) != answers).sum())
        except Exception as error:
            found["file"] = _reason(error)
    return found


def _evaluating(trainee: Trainee) -> nn.Module:
    """Put a model into evaluation mode, its observers off, as each library has it."""
    if isinstance(trainee.alive, contextlib.ExitStack):
        trainee.alive.close()
    for module in trainee.model.modules():
        if callable(off := getattr(module, "disable_observer", None)):
            off()
    if isinstance(trainee.model, torch.fx.GraphModule) and not hasattr(trainee.model, "_node_name_to_scope"):
        with contextlib.suppress(ImportError):
            from torchao.quantization.pt2e import move_exported_model_to_eval

            with contextlib.suppress(Exception):  # of a graph that is none of torch.export's
                return move_exported_model_to_eval(trainee.model)
    return trainee.model.eval()


@torch.no_grad()
def _answers(run: Callable[[Tensor], Any], images: Tensor) -> np.ndarray:
    return np.concatenate([np.asarray(run(x)).argmax(1) for x in images.split(BATCH)])


def _onnx(path: Path) -> Callable[[Tensor], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


if __name__ == "__main__":
    main()
