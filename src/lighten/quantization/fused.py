"""Fake-quantization kernels for GPUs: the arithmetic of ``fake_quant`` and ``parameters`` in one pass over memory.

Written out in tensor operations, a layer's weight takes some twenty launches and an activation four passes over memory;
here it is one of each, so that a step through int8 launches no more than the plain one. Numbers are computed in float32
whatever they are stored in, so that bfloat16 activations get the codes of float32 arithmetic.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Elements of an activation that one program rounds."""

MAX_WIDTH = 1024
"""Elements of a filter that one program holds at a time."""

_ALREADY = nullcontext()

_ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and taken away, a float32 below 2^22 is rounded to even."""


def is_dense(x: Tensor) -> bool:
    """Return whether ``x`` fills its memory without holes or overlaps, in whatever order of dimensions."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or _is_permuted(x)


def round_activation(
    x: Tensor, scale: float, zero_point: int, *, inplace: bool, seen: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Return ``x`` rounded to the nearest of 256 codes and back, in place or not.

    Args:
        x: any shape, dense.
        scale: of a step.
        zero_point: 0 to 255.
        inplace: write over ``x``.
        seen: (2,), float32; raised to ``-min(x)`` and ``max(x)`` where it is lower, to infinity by a NaN.
        relu: what is seen is ``relu(x)``.
    """
    out = x if inplace else torch.empty_like(x)
    n = x.numel()
    if n:
        with _on(x):
            _activation[(triton.cdiv(n, BLOCK),)](
                x, out, x if seen is None else seen, 1.0 / scale, scale, float(-zero_point), float(255 - zero_point), n,
                seen is not None, relu, BLOCK,
            )  # fmt: skip
    return out


def effective(
    weight: Tensor,
    bias: Tensor | None,
    norm: Any,
    *,
    limit: int,
    bias_unit: float | None,
    bias_limit: int,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a layer with batch norm folded in, rounded; output channels come first.

    Args:
        weight: (out, in, ...), each output channel in one piece of memory.
        bias: (out,) or ``None``.
        norm: the batch norm behind the layer, or ``None``.
        limit: largest code of the weight.
        bias_unit: scale of the layer's input, or ``None`` where the bias is not rounded.
        bias_limit: largest code of the bias.
    """
    out = torch.empty_like(weight)
    has_bias = bias is not None or norm is not None
    shift = torch.empty(len(weight), dtype=weight.dtype, device=weight.device) if has_bias else None
    size = weight.numel() // len(weight)
    with _on(weight):
        _weight[(len(weight),)](
            weight, bias, *_norm_of(norm), out, shift, norm.eps if norm is not None else 0.0, float(limit),
            bias_unit or 0.0, float(bias_limit), size, norm is not None, bias is not None, *_affine(norm),
            bias_unit is not None, min(MAX_WIDTH, triton.next_power_of_2(size)),
        )  # fmt: skip
    return out, shift


def effective_gradients(
    by_weight: Tensor, by_bias: Tensor, weight: Tensor, bias: Tensor | None, norm: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients by weight, bias and the norm's weight, of ``effective`` with a norm, rounding passed over.

    Args:
        by_weight: of the folded weight.
        by_bias: of the folded bias, (out,).
        weight: (out, in, ...).
        bias: (out,) or ``None``.
        norm: the batch norm behind the layer.
    """
    by_weight = by_weight if by_weight.stride() == weight.stride() else torch.empty_like(weight).copy_(by_weight)
    out = torch.empty_like(weight)
    to_bias = torch.empty_like(by_bias) if bias is not None else None
    to_gain = torch.empty_like(norm.weight) if norm.weight is not None else None
    size = weight.numel() // len(weight)
    with _on(weight):
        _gradients[(len(weight),)](
            by_weight, by_bias, weight, bias, *_norm_of(norm), out, to_bias, to_gain, norm.eps, size,
            bias is not None, norm.weight is not None, min(MAX_WIDTH, triton.next_power_of_2(size)),
        )  # fmt: skip
    return out, to_bias, to_gain


def _norm_of(norm: Any) -> tuple[Any, ...]:
    return (norm.weight, norm.bias, norm.running_mean, norm.running_var) if norm is not None else (None,) * 4


def _affine(norm: Any) -> tuple[bool, bool]:
    return (norm.weight is not None, norm.bias is not None) if norm is not None else (False, False)


def _on(x: Tensor) -> Any:
    """Launch on the tensor's own device, which is not always the current one."""
    elsewhere = x.is_cuda and x.get_device() != torch.cuda.current_device()
    return torch.cuda.device_of(x) if elsewhere else _ALREADY


def _is_permuted(x: Tensor) -> bool:
    expected = 1
    for size, stride in sorted(zip(x.shape, x.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


@triton.jit
def _rounded(x):
    return (x + _ROUND) - _ROUND


@triton.jit
def _activation(
    x_at, out_at, seen_at, inverse, scale, low, high, n,
    observe: tl.constexpr, relu: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < n
    x = tl.load(x_at + at, here, other=0.0).to(tl.float32)
    if observe:
        bad = x != x
        values = tl.where(bad, float("inf"), x)
        if relu:
            values = tl.maximum(values, 0.0)
        tl.atomic_max(seen_at, tl.max(tl.where(here, tl.where(bad, values, -values), -float("inf"))))
        tl.atomic_max(seen_at + 1, tl.max(tl.where(here, values, -float("inf"))))
    codes = tl.minimum(tl.maximum(x * inverse, low, tl.PropagateNan.ALL), high, tl.PropagateNan.ALL)
    tl.store(out_at + at, (_rounded(codes) * scale).to(out_at.dtype.element_ty), here)


@triton.jit
def _weight(
    weight_at, bias_at, gamma_at, beta_at, mean_at, var_at, out_at, shift_at,
    eps, limit, unit, bias_limit, size,
    has_norm: tl.constexpr, has_bias: tl.constexpr, has_gamma: tl.constexpr, has_beta: tl.constexpr,
    round_bias: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    start = channel.to(tl.int64) * size
    gain = 1.0
    shift = 0.0
    if has_bias:
        shift = tl.load(bias_at + channel).to(tl.float32)
    if has_norm:
        gain = 1.0 / tl.sqrt(tl.load(var_at + channel).to(tl.float32) + eps)
        if has_gamma:
            gain *= tl.load(gamma_at + channel).to(tl.float32)
        shift = (shift - tl.load(mean_at + channel).to(tl.float32)) * gain
        if has_beta:
            shift += tl.load(beta_at + channel).to(tl.float32)
    largest = tl.zeros((block,), tl.float32)
    for first in range(0, size, block):
        at = first + tl.arange(0, block)
        w = tl.load(weight_at + start + at, at < size, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(w * gain), tl.PropagateNan.ALL)
    scale = tl.maximum(tl.max(largest) / limit, 1e-20)
    if round_bias and (has_norm or has_bias):
        scale = tl.maximum(scale, tl.abs(shift) / (unit * bias_limit))
    for first in range(0, size, block):
        at = first + tl.arange(0, block)
        w = tl.load(weight_at + start + at, at < size, other=0.0).to(tl.float32)
        codes = tl.minimum(tl.maximum((w * gain) / scale, -limit), limit)
        tl.store(out_at + start + at, (_rounded(codes) * scale).to(out_at.dtype.element_ty), at < size)
    if has_norm or has_bias:
        if round_bias:
            step = scale * unit
            codes = shift / step
            # a code may be larger than what the sum with a constant rounds
            codes = tl.where(tl.abs(codes) < 4194304.0, _rounded(codes), codes)
            shift = tl.minimum(tl.maximum(codes, -bias_limit), bias_limit) * step
        tl.store(shift_at + channel, shift.to(shift_at.dtype.element_ty))  # type: ignore[attr-defined]


@triton.jit
def _gradients(
    by_weight_at, by_bias_at, weight_at, bias_at, gamma_at, beta_at, mean_at,
    var_at, out_at, to_bias_at, to_gain_at, eps, size,
    has_bias: tl.constexpr, has_gamma: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0)
    start = channel.to(tl.int64) * size
    inverse = 1.0 / tl.sqrt(tl.load(var_at + channel).to(tl.float32) + eps)
    by_bias = tl.load(by_bias_at + channel).to(tl.float32)
    mean = tl.load(mean_at + channel).to(tl.float32)
    gain = inverse
    if has_gamma:
        gain *= tl.load(gamma_at + channel).to(tl.float32)
    if has_bias:
        mean -= tl.load(bias_at + channel).to(tl.float32)
        tl.store(to_bias_at + channel, (by_bias * gain).to(to_bias_at.dtype.element_ty))
    total = tl.zeros((block,), tl.float32)
    for first in range(0, size, block):
        at = first + tl.arange(0, block)
        here = at < size
        gradient = tl.load(by_weight_at + start + at, here, other=0.0).to(tl.float32)
        total += gradient * tl.load(weight_at + start + at, here, other=0.0).to(tl.float32)
        tl.store(out_at + start + at, (gradient * gain).to(out_at.dtype.element_ty), here)
    if has_gamma:
        by_gain = (tl.sum(total) - by_bias * mean) * inverse
        tl.store(to_gain_at + channel, by_gain.to(to_gain_at.dtype.element_ty))
