"""Searches of other libraries that ``benchmarks/auto.py`` compares with, each set up as its documentation says.

Each gets the trained network, the same calibration and validation samples and the same need; its time is told, as none
of them takes a limit. It returns the compressed model and its original, both in the runtime that the library is made
for: its milliseconds are compared with those of its own original.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lighten import export
from lighten.delivery.measure.evaluate import evaluate
from lighten.delivery.runtimes.runners import open_runner
from lighten.tasks.task import Task
from lighten.utils.clone import clone

CALIBRATION = 300
"""Samples, as NNCF's documentation has it."""


@dataclass
class Given:
    """What a peer gets.

    Attributes:
        model: trained, in eval mode.
        example: a batch of two.
        inputs: calibration batches, of inputs alone.
        guide: labelled batches that the search may look at.
        task: scores them.
        max_drop: the need.
        folder: to write into.
    """

    model: nn.Module
    example: Tensor
    inputs: list[Tensor]
    guide: Any
    task: Task
    max_drop: float
    folder: Path

    def quality(self, model: Any) -> float:
        """Return the leading metric of a torch module or a file on the guide part."""
        with open_runner(model) as runner:
            return float(evaluate(self.task, {"it": runner}, self.guide).metrics["it"][self.task.metric])


def nncf(given: Given) -> tuple[Any, Any]:
    """NNCF's accuracy control, which is for OpenVINO alone."""
    import nncf
    import openvino as ov

    original = given.folder / "original.xml"
    export(given.model, given.example, original, target="openvino")
    path = given.folder / "nncf.xml"

    def validate(compiled: Any, batches: Any) -> tuple[float, None]:
        right = total = 0
        for inputs, labels in batches:
            answers = compiled(np.asarray(inputs))[0]
            right += int((answers.argmax(-1) == np.asarray(labels)).sum())
            total += len(labels)
        return right / total, None

    done = nncf.quantize_with_accuracy_control(
        ov.Core().read_model(original),
        calibration_dataset=nncf.Dataset(given.inputs, np.asarray),
        validation_dataset=nncf.Dataset(given.guide),
        validation_fn=validate,
        max_drop=given.max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
    )
    ov.save_model(done, path, compress_to_fp16=False)
    return path, original


def neural_compressor(given: Given) -> tuple[Any, Any]:
    """neural-compressor's autotune of static and dynamic int8, in PyTorch."""
    from neural_compressor.torch.export import export as to_graph
    from neural_compressor.torch.quantization import DynamicQuantConfig, StaticQuantConfig, TuningConfig, autotune

    def calibrate(model: nn.Module) -> None:
        for inputs in given.inputs:
            model(inputs)

    exported = to_graph(clone(given.model).eval(), (given.example,))
    found = autotune(
        model=exported,
        tune_config=TuningConfig(config_set=[StaticQuantConfig(), DynamicQuantConfig()], tolerable_loss=given.max_drop),
        eval_fn=given.quality,
        run_fn=calibrate,
        example_inputs=(given.example,),
    )
    if found is None:
        raise RuntimeError("autotune found no setting within the need")
    return found, given.model


def modelopt(given: Given) -> tuple[Any, Any]:
    """ModelOpt's auto_quantize, which bounds bits: the least effective bits whose drop fits, by its own steps."""
    import modelopt.torch.quantization as mtq

    original = given.quality(given.model)
    best = None
    for bits in (8.0, 10.0, 12.0, 14.0):
        model, _ = mtq.auto_quantize(
            clone(given.model).eval(),
            constraints={"effective_bits": bits},
            quantization_formats=[mtq.INT8_DEFAULT_CFG],
            data_loader=list(given.guide),
            forward_step=lambda model, batch: model(batch[0]),
            loss_func=lambda output, batch: given.task.loss(output, batch[1]),
            num_calib_steps=len(given.inputs),
            num_score_steps=len(given.inputs),
        )
        best = model
        if original - given.quality(model) <= given.max_drop:
            break
    path, float_path = given.folder / "modelopt.onnx", given.folder / "modelopt_original.onnx"
    torch.onnx.export(best, (given.example,), path, dynamo=False, input_names=["input"], opset_version=17)
    torch.onnx.export(given.model, (given.example,), float_path, dynamo=False, input_names=["input"], opset_version=17)
    return path, float_path


PEERS: dict[str, tuple[str, Callable[[Given], tuple[Any, Any]]]] = {
    "NNCF accuracy control": ("nncf", nncf),
    "neural-compressor autotune": ("neural-compressor", neural_compressor),
    "ModelOpt auto_quantize": ("nvidia-modelopt", modelopt),
}
"""By name: the package, and what it does."""


def compressed_by(name: str, given: Given) -> tuple[Any, Any, float] | str:
    """Return what a peer makes, its original and its seconds, or in a line why it makes nothing."""
    package, work = PEERS[name]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: pip install {package}"
    begun = time.perf_counter()
    try:
        compressed, original = work(given)
    except Exception as error:  # of anyone's code
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return compressed, original, time.perf_counter() - begun
