"""Functions, besides layers, that integer runtimes compute, and the mode that quantizes them in a forward."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lighten.quantization.activation_quantizers import ActivationQuantizers
from lighten.quantization.calls import tensors_in
from lighten.quantization.quantizer import Quantizer

RELU, RELU6, ADD, POOL, CAT, KEEP = "relu", "relu6", "add", "pool", "cat", "keep"
"""Kinds of calls. ``KEEP`` moves values about without changing them (max pooling, reshape, slice, pad with zeros)."""

RELUS = (RELU, RELU6)

_T = torch.Tensor
_KINDS: dict[Any, str] = {
    **dict.fromkeys([F.relu, torch.relu, torch.relu_, _T.relu, _T.relu_], RELU),
    F.relu6: RELU6,
    **dict.fromkeys([torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__], ADD),
    **dict.fromkeys([F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d], POOL),
    **dict.fromkeys([F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.mean, _T.mean], POOL),
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], CAT),
    **dict.fromkeys([F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool2d, F.pad], KEEP),
    **dict.fromkeys([torch.flatten, _T.flatten, torch.reshape, _T.reshape, _T.view, _T.__getitem__], KEEP),
    **dict.fromkeys([torch.squeeze, _T.squeeze, torch.permute, _T.permute, _T.transpose, torch.transpose], KEEP),
    **dict.fromkeys([_T.contiguous, F.dropout, F.dropout2d], KEEP),
}


def kind_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the kind of a call, or ``None`` for functions that stay in floating point.

    Args:
        function: what is called.
        args: as :func:`positional` returns them.
        kwargs: likewise.
    """
    kind = _KINDS.get(function)
    if kind is None or not args or not _is_floating(args[0]):
        return None
    if function in (torch.mean, _T.mean):
        return POOL if _is_spatial_mean(args, kwargs) else None
    if kind == ADD and not (len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor)):
        return None
    if kind == KEEP and kwargs.get("return_indices"):
        return None
    if function is F.pad and (kwargs.get("value") or kwargs.get("mode", "constant") != "constant" or len(args) > 2):
        return None
    return kind


def positional(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with what it computes on in front, where it was given by name."""
    if not kwargs or function not in _KINDS:
        return args, kwargs
    for name, position in OPERANDS.items():
        if name in kwargs and len(args) == position:
            args, kwargs = (*args, kwargs[name]), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


OPERANDS = {"input": 0, "tensors": 0, "other": 1}
"""Names of what functions compute on, and at which position it stands."""


class FunctionQuantizers(NamedTuple):
    """The quantizers of one function call.

    Attributes:
        inputs: quantizers by position.
        output: quantizer, if any.
        relu: the ReLU behind is computed here, together with the output's fake-quantization.
        done: the call is such a ReLU: it has nothing to do where the operation before has done it.
    """

    inputs: Mapping[int, Quantizer]
    output: Quantizer | None
    relu: bool = False
    done: bool = False


class FunctionMode(TorchFunctionMode):
    """While active, applies the quantizers of each watched call of the innermost module.

    Args:
        quantizers: whose functions these are.
    """

    def __init__(self, quantizers: ActivationQuantizers) -> None:
        super().__init__()
        self.quantizers = quantizers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = positional(func, args, kwargs or {})
        kind, calls = kind_of(func, args, kwargs), self.quantizers.calls
        identity = calls.identify(kind, inputs_of(kind, args)) if kind else None
        call = self.quantizers.functions.find(identity) if identity else None
        if call is None:
            output = func(*args, **kwargs)
            rectified = False
        else:
            output, rectified = self._at(call, kind, func, args, kwargs)
        calls.follow(output, tensors_in(args, kwargs), rectified=rectified)
        return output

    def _at(self, call: FunctionQuantizers, kind: str | None, func: Any, args: Any, kwargs: Any) -> tuple[Any, bool]:
        """Return what the call returns, and whether that is a sum with its ReLU."""
        if call.inputs:
            args = _quantized(args, call.inputs)
        if self.quantizers.computes_int8:
            if call.done and self.quantizers.calls.origin(args[0]).rectified:
                return args[0], False
            if kind == ADD and call.output is not None:
                return call.output.relu_fake_quantize_(func(*args, **kwargs), relu=call.relu), call.relu
        output = func(*args, **kwargs)
        return (output if call.relu or call.output is None else call.output(output)), False


def inputs_of(kind: str, args: tuple[Any, ...]) -> list[Any]:
    """Return the tensors that a call of ``kind`` computes on; positions are those of ``FunctionQuantizers.inputs``."""
    if kind == CAT:
        return list(args[0])
    return list(args[:2]) if kind == ADD else [args[0]]


def _quantized(args: tuple[Any, ...], quantizers: Mapping[int, Quantizer]) -> tuple[Any, ...]:
    if isinstance(args[0], list | tuple):
        return ([quantizers[i](x) if i in quantizers else x for i, x in enumerate(args[0])], *args[1:])
    return tuple(quantizers[i](x) if i in quantizers else x for i, x in enumerate(args))


def _is_floating(x: Any) -> bool:
    first = x[0] if isinstance(x, list | tuple) and x else x
    return isinstance(first, Tensor) and first.is_floating_point()


def _is_spatial_mean(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    dims = kwargs.get(
        "dim", args[1:] if len(args) > 2 and isinstance(args[1], int) else args[1] if len(args) > 1 else ()
    )
    if isinstance(dims, int):
        dims = (dims,)
    rank = args[0].dim()
    return rank > 2 and bool(dims) and {d % rank for d in dims if isinstance(d, int)} == set(range(2, rank))
