"""Fake-quantization against torch's own operators and against integer arithmetic written out."""

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from hypothesis import given
from hypothesis import strategies as st

from lighten.quantization.fake_quant import (
    BIAS_LIMIT,
    code_limit,
    fake_quantize,
    fake_quantize_channels,
    quantization_parameters,
    quantized_parameters,
    weight_scale,
)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 2.7), (-5.0, -1.0), (0.5, 0.7), (-1e-3, 1e4)])
def test_activations_match_torch_forward_and_backward(low, high):
    scale, zero_point = quantization_parameters(low, high)
    x = torch.linspace(low - 1, high + 1, 4001).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(reference, scale, zero_point, 0, 255).square().sum().backward()
    fake_quantize(x, scale, zero_point).square().sum().backward()
    torch.testing.assert_close(
        fake_quantize(x, scale, zero_point), torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    )
    torch.testing.assert_close(x.grad, reference.grad)
    assert (x.grad == 0).any()
    assert (x.grad != 0).any()


def test_activations_are_bit_equal_to_quantize_dequantize():
    scale, zero_point = quantization_parameters(-0.37, 1.91)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    ops = torch.ops.quantized_decomposed
    codes = ops.quantize_per_tensor(x, scale, zero_point, 0, 255, torch.uint8)
    expected = ops.dequantize_per_tensor(codes, scale, zero_point, 0, 255, torch.uint8)
    assert torch.equal(fake_quantize(x, scale, zero_point), expected)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_zero_is_exact_and_the_range_is_covered(low, width):
    scale, zero_point = quantization_parameters(low, low + width)
    assert 0 <= zero_point <= 255
    assert fake_quantize(torch.zeros(3), scale, zero_point).tolist() == [0.0, 0.0, 0.0]
    ends = torch.tensor([low, low + width], dtype=torch.float64)
    assert (fake_quantize(ends, scale, zero_point) - ends).abs().max() <= scale * 1.01
    assert scale == float(np.float32(scale))


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("inf")), (1.0, 0.0)])
def test_ranges_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="expected finite numbers"):
        quantization_parameters(*bounds)


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_weights_match_torch_per_channel(bits):
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    scale, limit = weight_scale(weight, bits), code_limit(bits)
    expected = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(6, dtype=torch.int32), 0, -limit, limit
    )
    torch.testing.assert_close(fake_quantize_channels(weight, scale, limit), expected)
    assert limit == 2 ** (bits - 1) - 1
    largest = weight.flatten(1).abs().argmax(1)
    rows = torch.arange(6)
    assert torch.equal(  # the largest weight of a channel is exactly representable
        fake_quantize_channels(weight, scale, limit).flatten(1)[rows, largest].abs(),
        (scale * limit),
    )


def test_weight_gradient_passes_straight_through():
    weight = torch.randn(4, 5, requires_grad=True)
    fake_quantize_channels(weight, weight_scale(weight), 127).mul(3).sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 5), 3.0))


def test_a_bias_never_overflows_its_accumulator():
    weight = torch.tensor([[1e-12, 0.0], [0.5, 1.0]])
    bias = torch.tensor([3.0, 0.1])
    scale, bias_scale = quantized_parameters(weight, bias, 0.01, 8)
    codes = bias / bias_scale
    assert codes.abs().max() <= BIAS_LIMIT * 1.001
    assert scale[1] == pytest.approx(1 / 127)
    assert (fake_quantize_channels(bias, bias_scale, BIAS_LIMIT) - bias).abs().max() < 1e-4


def test_dead_channels_have_safe_scales():
    scale, bias_scale = quantized_parameters(torch.zeros(2, 3), torch.zeros(2), 0.1, 8)
    assert (scale > 0).all()
    assert (bias_scale > 0).all()
    assert torch.equal(fake_quantize_channels(torch.zeros(2, 3), scale, 127), torch.zeros(2, 3))
