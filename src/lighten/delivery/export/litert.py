"""The writer of LiteRT (formerly TensorFlow Lite) files, ``.tflite``."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.delivery.export.graph import DEQUANTIZE_CHANNELS, LAYERS, layers_in_float, trace, value_of
from lighten.delivery.export.one_sample import write_one_sample
from lighten.delivery.export.request import Request
from lighten.delivery.runtimes.packages import need
from lighten.delivery.runtimes.quiet import silent
from lighten.errors import UserError, did_you_mean
from lighten.quantization.integer_layers import QdqFormat

FORMAT = QdqFormat(signed=True, weight_codes=False, bias_codes=False)
"""What the converter recognises: it makes the codes of weights and biases itself, exactly, as they lie on the grid."""

MODES = ("dynamic", "float16")
"""How the weights of a float model can be stored."""

CODES = 127
"""The largest code of a weight that the quantizer of ``.tflite`` files writes."""


def write(request: Request) -> None:
    """Write a LiteRT file."""
    write_one_sample(request, FORMAT, litert_bytes)


def litert_bytes(model: nn.Module, args: tuple[Tensor, ...], mode: str | None = None) -> bytes:
    """Return the ``.tflite`` file of ``model``, for the shapes of ``args`` alone.

    Args:
        model: in ``FORMAT`` if it is quantized; its input then is int8, and integer kernels compute all but the
            layers whose output leaves the network: these compute in float with weights that are stored in int8
            (in float where they would not come back exactly, or where other layers were excluded).
        args: example inputs.
        mode: ``"dynamic"`` for int8 weights (one scale an output channel) and float activations, which are
            quantized as they come; ``"float16"`` for weights stored in half; ``None`` for the model as it is.

    Raises:
        UserError: if litert-torch is not installed, or there is no such mode.
    """
    if mode is not None and mode not in MODES:
        raise UserError(f"mode={mode!r}: {did_you_mean(str(mode), MODES)}")
    litert, quantize, bridge = need(
        "litert", "litert_torch", "litert_torch.quantize.pt2e_quantizer", "jax._src.xla_bridge"
    )
    # the converter's helper, JAX, would warn of every fork of this process from then on, as loaders of data make them
    bridge._at_fork_handler_installed = True
    with silent(), torch.no_grad():
        quantizer = quantize.PT2EQuantizer().set_global(quantize.get_symmetric_quantization_config())
        settings = litert.quantize.quant_config.QuantConfig(pt2e_quantizer=quantizer)
        graph = trace(model, args)
        graph.training = False
        content = litert.convert(graph, args, quant_config=settings).model_content()
    if mode is None and _outer_layers_come_back(graph):
        mode = "weight_only"
    return content if mode is None else _stored_as(mode, content)


def _outer_layers_come_back(graph: fx.GraphModule) -> bool:
    """Return whether all float layers of the file are quantized ones whose weights int8 codes hold exactly."""
    layers: list[Any] = [node.args[1] for node in graph.graph.nodes if node.target in LAYERS]
    outer: list[Any] = [node.args[1] for node in layers_in_float(graph)]
    if not outer or any(str(weight.target) != DEQUANTIZE_CHANNELS for weight in layers):
        return False
    largest = torch.cat([value_of(graph, weight.args[0]).flatten(1).abs().amax(1) for weight in outer])
    return bool(torch.isin(largest, torch.tensor([0, CODES])).all())


def _stored_as(mode: str, content: bytes) -> bytes:
    """Return a ``.tflite`` file with its float weights stored in another way."""
    quantizer, recipe, types = need("litert", *(f"ai_edge_quantizer.{x}" for x in ("quantizer", "recipe", "qtyping")))
    with silent():
        if mode == "dynamic":
            work = quantizer.Quantizer(bytearray(content), recipe.dynamic_wi8_afp32())
        elif mode == "weight_only":
            work = quantizer.Quantizer(bytearray(content))
            work.add_weight_only_config(".*", types.TFLOperationName.FULLY_CONNECTED, num_bits=8)
        else:
            work = quantizer.Quantizer(bytearray(content))
            work.update_quantization_recipe(".*", types.TFLOperationName.ALL_SUPPORTED, _half(types), "float_casting")
        return bytes(work.quantize().quantized_model)


def _half(types: Any) -> Any:
    weight = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
    return types.OpQuantizationConfig(weight_tensor_config=weight, compute_precision=types.ComputePrecision.FLOAT)
