"""Effective parameters of quantized layers: batch norm folded in, rounded, with their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from lighten.quantization.fake_quant import (
    BIAS_LIMIT,
    code_limit,
    kernels_for,
    quantized_parameters,
    refuse_in_files,
    rounded,
)
from lighten.quantization.fold import along_outputs, fold_batch_norm


def effective_parameters(
    weight: Tensor,
    bias: Tensor | None,
    norm: Any,
    input_scale: float | None,
    *,
    bits: int = 8,
    axis: int = 0,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias with batch norm folded in, fake-quantized.

    Rounding passes gradients unchanged; weight, bias and the norm's weight and bias get those of ``fold_batch_norm``.
    One autograd node a layer, as small tensors would cost more in bookkeeping than in arithmetic.

    Args:
        weight: (out, in, ...), or (in, out / groups, ...) with ``axis`` 1.
        bias: (out,) or ``None``.
        norm: the batch norm behind the layer, or ``None``.
        input_scale: of the layer's activations; without it the bias is not rounded.
        bits: of the weight.
        axis: of the output channels in ``weight``.
        groups: of a transposed convolution, else 1.
    """
    refuse_in_files()
    gamma, beta = (norm.weight, norm.bias) if norm is not None else (None, None)
    return _Effective.apply(weight, bias, gamma, beta, norm, input_scale, bits, axis, groups)


class _Effective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        norm: nn.Module | None,
        input_scale: float | None,
        bits: int,
        axis: int,
        groups: int,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(weight, bias, gamma)
        ctx.norm, ctx.axis, ctx.groups = norm, axis, groups
        kernels = _kernels_for(weight, axis, groups)
        if kernels is not None:
            return kernels.effective(
                weight, bias, norm, limit=code_limit(bits), bias_unit=input_scale, bias_limit=BIAS_LIMIT
            )
        if norm is not None:
            weight, bias = fold_batch_norm(weight, bias, norm, axis=axis, groups=groups)
        scale, bias_scale = quantized_parameters(weight, bias, input_scale, bits, axis)
        weight = rounded(weight, scale, code_limit(bits), axis)
        if bias is not None:
            # a new tensor in any case, as an input must not be returned as it is
            bias = bias.clone() if bias_scale is None else rounded(bias, bias_scale, BIAS_LIMIT)
        return weight, bias

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        by_weight, by_bias = grads
        weight, bias, gamma = ctx.saved_tensors
        norm, none = ctx.norm, (None,) * 5
        if norm is None:
            return by_weight, by_bias, None, None, *none
        kernels = _kernels_for(weight, ctx.axis, ctx.groups)
        if kernels is not None:
            to_weight, to_bias, to_gain = kernels.effective_gradients(by_weight, by_bias, weight, bias, norm)
            return to_weight, to_bias, to_gain, by_bias if norm.bias is not None else None, *none
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        gain = inverse if gamma is None else inverse * gamma
        by_gamma = None
        if gamma is not None:
            mean = norm.running_mean if bias is None else norm.running_mean - bias
            by_gain = _sum_over_inputs(by_weight * weight, ctx.axis, ctx.groups)
            by_gamma = torch.addcmul(by_gain, by_bias, mean, value=-1).mul_(inverse)
        by_weight = by_weight * along_outputs(gain, weight, axis=ctx.axis, groups=ctx.groups)
        by_beta = by_bias if norm.bias is not None else None
        return by_weight, by_bias * gain if bias is not None else None, by_gamma, by_beta, *none


def _kernels_for(weight: Tensor, axis: int, groups: int) -> Any:
    """Return the fused kernels where they can take ``weight``: output channels first, each in one piece of memory."""
    if axis or groups > 1 or weight.stride(0) * len(weight) != weight.numel():
        return None
    return kernels_for(weight)


def _sum_over_inputs(x: Tensor, axis: int, groups: int) -> Tensor:
    if axis == 0:
        return x.sum(list(range(1, x.dim())))
    x = x.unflatten(0, (groups, -1))
    return x.sum([d for d in range(x.dim()) if d not in (0, 2)]).flatten()
