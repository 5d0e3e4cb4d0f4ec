"""Preparation of a model for tracing: a copy on the CPU in float32, its quantized parts in integers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighten.delivery.export.onnx_modes import dynamic_integers_
from lighten.delivery.runtimes.signature import Graph, named_inputs
from lighten.errors import UserError, one_line
from lighten.quantization.install import unquantize_
from lighten.quantization.integer_layers import QdqFormat, convert
from lighten.quantization.post_training import modes_of, rounded_weights
from lighten.quantization.settings import STATIC, TRAIN
from lighten.utils.clone import clone, fix_weights_
from lighten.utils.inputs import Call, ExampleInput, as_call, map_tensors


@dataclass(frozen=True)
class Source:
    """What a file is made of.

    Attributes:
        model: the user's, only looked at.
        network: a copy that computes in PyTorch what the file shall compute.
        call: an example call.
        inputs: its tensors, in the file's order.
        modes: how it and its parts are quantized.
    """

    model: nn.Module
    network: Graph
    call: Call
    inputs: tuple[Tensor, ...]
    modes: set[str]

    @property
    def quantized(self) -> bool:
        """Whether any part of it is."""
        return bool(self.modes)

    @property
    def halves(self) -> dict[str, str]:
        """Which weights are stored in which 16-bit type, by their names in the graph."""
        return rounded_weights(self.network)

    def converted(self, form: QdqFormat) -> Graph:
        """Return what is traced: a copy with its quantized parts in integers, wherever they are."""
        model = clone(self.network.model)
        dynamic_integers_(model)
        if self.modes & {TRAIN, STATIC}:
            model = convert(model, form)
        return Graph(model, self.call, self.network.outputs)


def source_of(model: nn.Module, example_input: ExampleInput, outputs: Sequence[str] | None = None) -> Source:
    """Return what a file of ``model`` is made of.

    Args:
        model: left as it is.
        example_input: as of ``export``.
        outputs: names of those to keep; all by default.

    Raises:
        UserError: if the forward does not take the example, or gives no such output.
    """
    call = map_tensors(_as_float32, as_call(example_input))
    network, inputs = Graph(plain_copy(model), call, outputs), tuple(named_inputs(call).values())
    try:
        with torch.no_grad():
            network(*inputs)
    except UserError:
        raise
    except Exception as error:  # whatever a forward raises
        raise UserError(
            f"{type(model).__name__} does not run on the example input ({one_line(error, 200)}); give inputs that its "
            "forward takes"
        ) from error
    return Source(model, network, call, inputs, modes_of(network))


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode on the CPU, in float32: codes then come out the same whatever ``model`` is on.

    Weights that are computed from others (masks, weight norm, any parametrization) are computed once.
    """
    copied = clone(getattr(model, "_orig_mod", model)).eval().cpu()
    if any(_is_other_float(x) for x in (*copied.parameters(), *copied.buffers())):
        copied._apply(lambda x: x.float() if _is_other_float(x) else x)
    fix_weights_(copied)
    return copied


def in_float(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized model that computes in float32, with the same weights."""
    return unquantize_(clone(model))


def _is_other_float(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != torch.float32


def _as_float32(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.float() if _is_other_float(x) else x
