"""Differentiable fake-quantization: what an integer runtime would compute, in floating point.

Activations are affine over 256 levels, one scale a tensor:

    q = clamp(round(x / scale) + zero_point, 0, 255),   x' = (q - zero_point) * scale

Weights are symmetric, one scale an output channel, on [-(2^(bits-1) - 1), 2^(bits-1) - 1]. Both follow Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, eq. (1)-(12);
gradients pass straight through (Bengio et al. 2013, arXiv:1308.3432), except where an activation ends on the lowest or
the highest code: clipped, or rounded there. The result alone says where that is, so that nothing else is kept for the
backward pass: a convolutional network needs less memory for it than without fake-quantization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lighten.errors import UserError

KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the fused kernels read and write."""

LEVELS = 255
"""Steps of an unsigned 8-bit code."""

SMALLEST_SCALE = 2.0**-20
"""Scale of a range that is a single point (a dead activation): safe to divide by."""

BIAS_LIMIT = 2**30
"""Largest bias code: half of int32, so that accumulators have room left."""


_forbidden = False


@contextmanager
def forbidden() -> Iterator[None]:
    """Let fake-quantizing raise: a file holds integers, and never the arithmetic that imitates them.

    Raises:
        UserError: where something in here fake-quantizes.
    """
    global _forbidden
    before, _forbidden = _forbidden, True
    try:
        yield
    finally:
        _forbidden = before


def refuse_in_files() -> None:
    """Raise ``UserError`` inside ``forbidden``; whatever fake-quantizes calls it."""
    if _forbidden:
        raise UserError(
            "a layer here is fake-quantized, but not by what is exported; export the model that quantize_, "
            "quantize_post_training or Quantize was given, or a module around it"
        )


def quantization_parameters(low: float, high: float) -> tuple[float, int]:
    """Return ``(scale, zero_point)`` of an activation whose values lie in ``[low, high]``.

    The range is widened to hold zero, which then has a code of its own: ``scale = (high - low) / 255`` and
    ``zero_point = round(-low / scale)``. The scale is a float32 number, as every runtime stores it.

    Raises:
        ValueError: if a bound is not finite or ``low > high``.

    Example:
        >>> quantization_parameters(0.0, 255.0)
        (1.0, 0)
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"range [{low}, {high}]: expected finite numbers, the lower first")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / LEVELS, SMALLEST_SCALE)))
    return scale, round(min(max(-low / scale, 0), LEVELS))


@dataclass(frozen=True)
class Watch:
    """What a GPU observes of an activation while it rounds that: one pass over memory instead of three.

    Attributes:
        seen: (2,), float32, raised to ``-min(x)`` and ``max(x)`` where it is lower.
        relu: of ``relu(x)`` instead.
    """

    seen: Tensor
    relu: bool = False


def fake_quantize(
    x: Tensor, scale: float, zero_point: int, *, keep_input: bool = False, watch: Watch | None = None
) -> Tensor:
    """Round ``x`` (any shape) to its nearest 8-bit code and back; the gradient is zero on codes 0 and 255.

    Bit-equal to ``quantize_per_tensor`` followed by ``dequantize_per_tensor`` over ``[0, 255]``. The backward pass
    keeps the result, or ``x`` with ``keep_input``, for results that are changed in place afterwards.
    ``watch`` is for tensors that ``kernels_for`` has kernels for.
    """
    refuse_in_files()
    return _FakeQuantize.apply(x, scale, zero_point, False, keep_input, watch)


def fake_quantize_(x: Tensor, scale: float, zero_point: int, *, watch: Watch | None = None) -> Tensor:
    """In-place version of ``fake_quantize``; ``x`` must not be needed by the backward pass of what made it."""
    refuse_in_files()
    return _FakeQuantize.apply(x, scale, zero_point, True, False, watch)


def kernels_for(x: Tensor) -> Any:
    """Return the module of fused kernels where ``x`` is on a GPU that they run on, else ``None``."""
    if not x.is_cuda or x.dtype not in KERNEL_TYPES:
        return None
    kernels = _kernels()
    return kernels if kernels is not None and kernels.is_dense(x) else None


@cache
def _kernels() -> Any:
    try:
        from lighten.quantization import fused
    except ImportError:  # Triton comes with torch's CUDA builds, not on every system
        return None
    return fused


def fake_quantize_learned(x: Tensor, scale: float, zero_point: int, gradient: Tensor, *, relu: bool = False) -> Tensor:
    """Do as ``fake_quantize``, or as that of ``relu(x)``, and add the loss's gradient by ``scale`` to ``gradient``.

    Learned step size (Esser et al. 2020, "Learned Step Size Quantization", eq. 3 and section 2.2): with codes n to p,
    ``d x' / d scale`` is ``round(x / scale) - x / scale`` inside, n below and p above, summed over ``x`` and divided
    by ``sqrt(x.numel() * p)``; ``x`` gets its gradient where it was not clipped.

    Args:
        x: any shape.
        scale: of a step.
        zero_point: 0 to 255; n is ``-zero_point``, p is ``255 - zero_point``.
        gradient: a scalar tensor, changed in the backward pass.
        relu: clip at zero first; needs ``zero_point`` 0.
    """
    refuse_in_files()
    return _FakeQuantizeLearned.apply(x, scale, zero_point, gradient, relu)


def weight_scale(weight: Tensor, bits: int = 8, axis: int = 0) -> Tensor:
    """Return one scale an output channel, ``amax / (2^(bits-1) - 1)``; the result has shape (``weight.shape[axis]``,).

    ``amax / 127`` with codes in [-127, 127] puts the largest weight exactly on a code; a dead channel's scale is
    small and positive.
    """
    weight = weight.detach()
    others = [d for d in range(weight.dim()) if d != axis]
    return (weight.abs().amax(others) / code_limit(bits)).clamp_min_(1e-20)


def code_limit(bits: int) -> int:
    """Return the largest code of a symmetric weight: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def quantize_codes(x: Tensor, scale: Tensor, limit: int, axis: int = 0) -> Tensor:
    """Return integer codes, as floating point, of ``x`` under one ``scale`` a channel along ``axis``."""
    return (x / _along(scale, x, axis)).round_().clamp_(-limit, limit)


def rounded(x: Tensor, scale: Tensor, limit: int, axis: int = 0) -> Tensor:
    """Return ``x`` rounded to codes of its channel's ``scale`` (channels,) and back, without a gradient."""
    return quantize_codes(x, scale, limit, axis).mul_(_along(scale, x, axis))


def fake_quantize_channels(x: Tensor, scale: Tensor, limit: int, axis: int = 0) -> Tensor:
    """Round ``x`` to codes of its channel's ``scale`` (channels,) and back; the gradient passes unchanged."""
    refuse_in_files()
    return _FakeQuantizeChannels.apply(x, scale, limit, axis)


def quantized_parameters(
    weight: Tensor, bias: Tensor | None, input_scale: float | None, bits: int, axis: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Return the scales ``(weight, bias)`` under which a layer's parameters are stored.

    The bias is an int32 in units of ``input_scale * weight_scale``, which is what integer kernels add to their
    accumulators. Where a channel's weights are so small that its bias would overflow, its weight scale grows instead.
    Without ``input_scale`` the bias stays in floating point (``None``).

    Args:
        weight: output channels along ``axis``.
        bias: (out,), a multiple of ``weight.shape[axis]`` long: groups of a transposed convolution share scales.
        input_scale: of the layer's activations.
        bits: of the weight.
        axis: of the weight.
    """
    scale = weight_scale(weight, bits, axis)
    if bias is None or input_scale is None:
        return scale, None
    least = bias.detach().abs() / (input_scale * BIAS_LIMIT)
    groups = len(bias) // len(scale)
    if groups > 1:
        least = least.view(groups, -1).amax(0)
    scale = torch.maximum(scale, least)
    return scale, (scale * input_scale).repeat(groups) if groups > 1 else scale * input_scale


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    return scale.view([-1 if d == axis else 1 for d in range(x.dim())])


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: float, zero_point: int, inplace: bool, keep_input: bool, watch: Watch | None
    ) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        kernels = kernels_for(x)
        if kernels is not None:
            seen, relu = (watch.seen, watch.relu) if watch is not None else (None, False)
            rounded = kernels.round_activation(x, scale, zero_point, inplace=inplace, seen=seen, relu=relu)
        else:
            codes = x.mul_(1.0 / scale) if inplace else x * (1.0 / scale)
            rounded = codes.round_().clamp_(-zero_point, LEVELS - zero_point).mul_(scale)
        ctx.save_for_backward(x if keep_input else rounded)
        ctx.low, ctx.high = (0.5 - zero_point) * scale, (LEVELS - zero_point - 0.5) * scale
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], kept, ctx.low, ctx.high), None, None, None, None, None


class _FakeQuantizeLearned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int, gradient: Tensor, relu: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.zero_point, ctx.gradient, ctx.relu = scale, zero_point, gradient, relu
        return (x * (1.0 / scale)).round_().clamp_(-zero_point, LEVELS - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (x,), scale, (grad, *_) = ctx.saved_tensors, ctx.scale, grads
        lowest, highest = -ctx.zero_point, LEVELS - ctx.zero_point
        codes = x.float() / scale
        inside = (codes > (0 if ctx.relu else lowest - 0.5)) & (codes < highest + 0.5)
        slope = torch.where(inside, codes.round() - codes, codes.clamp(lowest, highest))
        share = (x.numel() * max(highest, 1)) ** -0.5
        ctx.gradient.add_((grad.float() * slope).sum() * share)
        low = 0.0 if ctx.relu else (lowest - 0.5) * scale
        return torch.ops.aten.hardtanh_backward(grad, x, low, (highest + 0.5) * scale), None, None, None, None


class _FakeQuantizeChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, limit: int, axis: int) -> Tensor:
        return rounded(x, scale, limit, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None
