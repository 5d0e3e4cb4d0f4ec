"""The common part of writers of files that take one sample a call."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.delivery.export.dimensions import with_samples
from lighten.delivery.export.prepare import in_float, source_of
from lighten.delivery.export.proof import prove
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.packages import is_installed
from lighten.errors import UserError
from lighten.quantization.fake_quant import forbidden
from lighten.quantization.integer_layers import QdqFormat
from lighten.quantization.post_training import HALVES, mode_of, modes_of
from lighten.quantization.settings import DYNAMIC
from lighten.quantization.weights_alone import is_weights_alone

Converter = Callable[[nn.Module, tuple[Tensor, ...], str | None], bytes]
"""Makes a file's bytes of a model, for the shapes of its inputs alone, and a mode."""


def write_one_sample(request: Request, form: QdqFormat, convert: Converter) -> None:
    """Write a file that takes one sample a call; where its runtime is installed, it is compared with the model.

    Args:
        request: what to write.
        form: how the converter knows a quantized layer.
        convert: makes the file's bytes.

    Raises:
        UserError: if the target has no form of the model, or the file computes something else.
    """
    model, mode = with_mode(request)
    source = source_of(model, request.example, request.outputs)
    plain = torch.contiguous_format  # LiteRT's converter misreads channels-last tensors
    sample = tuple(x.clone(memory_format=plain) for x in with_samples(source.inputs, 1))
    graph: Any = source.converted(form)
    with forbidden():
        content = convert(graph.to(memory_format=plain), sample, mode)
    if is_installed(request.target.runtime):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"model{request.path.suffix}"
            file.write_bytes(content)
            quantized = source.quantized or mode is not None
            prove(file, source.network, [sample], quantized=quantized, name=request.path)
    request.store(content)


def with_mode(request: Request) -> tuple[nn.Module, str | None]:
    """Return the model in float and the mode that its file is stored in, where that is the target's own.

    Raises:
        UserError: if the target has no form of how the model is quantized.
    """
    model, mode, takes_mode = request.model, request.mode, "mode" in request.target.settings
    if is_weights_alone(model):
        raise UserError(
            f"target {request.target.name!r} has no form of int8 weights whose activations are in float32; choose "
            "target 'onnx', or deliver the run with delivery.precision=int8"
        )
    for other in modes_of(model) & {DYNAMIC, *HALVES}:
        if not takes_mode or modes_of(model) != {other} or mode_of(model) is None:
            raise UserError(
                f"target {request.target.name!r} has no form of a model that mode {other!r} quantized"
                f"{' in part' if takes_mode else ''}; choose target 'onnx', or quantize all of it as 'static'"
            )
        model, mode = in_float(model), other
    return model, mode
