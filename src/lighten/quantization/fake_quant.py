"""Quantize and dequantize in one step, differentiably: what an integer runtime would compute, in floating point.

Activations are affine over 256 levels, one scale a tensor:

    q = clamp(round(x / scale) + zero_point, 0, 255),   x' = (q - zero_point) * scale

Weights are symmetric, one scale an output channel, on [-(2^(bits-1) - 1), 2^(bits-1) - 1]. Both follow Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, eq. (1)-(12);
gradients pass straight through (Bengio et al. 2013, arXiv:1308.3432), except where an activation was clipped.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 255
"""Steps of an unsigned 8-bit code."""

SMALLEST_SCALE = 2.0**-20
"""Scale of a range that is a single point (a dead activation): safe to divide by."""

BIAS_LIMIT = 2**30
"""Largest bias code: half of int32, so that accumulators have room left."""


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


def fake_quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Round ``x`` (any shape) to its nearest 8-bit code and back; the gradient is zero where ``x`` was clipped.

    Bit-equal to ``quantize_per_tensor`` followed by ``dequantize_per_tensor`` over ``[0, 255]``.
    """
    return _FakeQuantize.apply(x, scale, zero_point)


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """Return one scale an output channel, ``amax / (2^(bits-1) - 1)``; ``weight`` is (out, in, ...), result (out,).

    ``amax / 127`` with codes in [-127, 127] puts the largest weight exactly on a code; a dead channel's scale is
    small and positive.
    """
    amax = weight.detach().flatten(1).abs().amax(1)
    return (amax / code_limit(bits)).clamp_min_(1e-20)


def code_limit(bits: int) -> int:
    """Return the largest code of a symmetric weight: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def quantize_codes(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Return integer codes, as floating point, of ``x`` (out, ...) under ``scale`` (out,)."""
    return (x / _along_first(scale, x)).round_().clamp_(-limit, limit)


def fake_quantize_channels(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Round ``x`` (out, ...) to codes of its channel's ``scale`` (out,) and back; the gradient passes unchanged."""
    return _FakeQuantizeChannels.apply(x, scale, limit)


def quantized_parameters(
    weight: Tensor, bias: Tensor | None, input_scale: float | None, bits: int
) -> tuple[Tensor, Tensor | None]:
    """Return the scales ``(weight, bias)`` under which a layer's parameters are stored.

    The bias is an int32 in units of ``input_scale * weight_scale``, which is what integer kernels add to their
    accumulators. Where a channel's weights are so small that its bias would overflow, its weight scale grows instead.
    Without ``input_scale`` the bias stays in floating point (``None``).
    """
    scale = weight_scale(weight, bits)
    if bias is None or input_scale is None:
        return scale, None
    scale = torch.maximum(scale, bias.detach().abs() / (input_scale * BIAS_LIMIT))
    return scale, scale * input_scale


def _along_first(scale: Tensor, x: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (x.dim() - 1))


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = (-zero_point - 0.5) * scale, (LEVELS - zero_point + 0.5) * scale
        return (x * (1.0 / scale)).round_().clamp_(-zero_point, LEVELS - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], x, ctx.low, ctx.high), None, None


class _FakeQuantizeChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, limit: int) -> Tensor:
        return quantize_codes(x, scale, limit).mul_(_along_first(scale, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None
