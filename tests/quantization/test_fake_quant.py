"""Fake-quantization against torch's own operators and against integer arithmetic written out."""

import math

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
    fake_quantize_,
    fake_quantize_channels,
    fake_quantize_learned,
    quantization_parameters,
    quantized_parameters,
    weight_scale,
)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 2.7), (-5.0, -1.0), (0.5, 0.7), (-1e-3, 1e4)])
def test_activations_match_torch_forward_and_backward(low, high):
    scale, zero_point = quantization_parameters(low, high)
    x = torch.linspace(low - 1, high + 1, 4001).requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(x.detach(), scale, zero_point, 0, 255)
    codes = torch.clamp(torch.round(x.detach().double() / scale) + zero_point, 0, 255)
    inside = (codes > 0) & (codes < 255)
    for keep_input in (False, True):
        x.grad = None
        ours = fake_quantize(x, scale, zero_point, keep_input=keep_input)
        torch.testing.assert_close(ours, expected)
        ours.square().sum().backward()
        gradient = torch.where(inside, 2 * expected, 0.0)
        assert ((x.grad - gradient).abs() > 1e-5 * gradient.abs().max()).sum() <= 2  # on a tie of rounding
    assert (x.grad == 0).any()
    assert (x.grad != 0).any()


def test_in_place_is_the_same_in_values_and_gradients():
    scale, zero_point = quantization_parameters(-0.5, 1.5)
    x = torch.randn(200, requires_grad=True)
    own = x * 2
    address = own.data_ptr()
    ours = fake_quantize_(own, scale, zero_point)
    assert ours.data_ptr() == address
    expected = fake_quantize(x * 2, scale, zero_point)
    assert torch.equal(ours, expected)
    along = torch.randn(200)
    assert torch.equal(*(torch.autograd.grad(y, x, along)[0] for y in (ours, expected)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-0.4, 1.2)])
def test_learned_step_size_has_the_gradient_of_the_paper(low, high, relu):
    scale, zero_point = quantization_parameters(low, high)
    if relu and zero_point:
        return
    x = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1.5).requires_grad_()
    along = torch.randn(500, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(())
    y = fake_quantize_learned(x, scale, zero_point, total, relu=relu)
    y.backward(along)
    given = x.detach().relu() if relu else x.detach()
    assert torch.equal(y, fake_quantize(given, scale, zero_point))
    lowest, highest, slopes = -zero_point, 255 - zero_point, []
    for value in given.double().tolist():
        code = value / scale
        inside = lowest - 0.5 < code < highest + 0.5
        slopes.append(round(code) - code if inside else lowest if code < 0 else highest)
    expected = float((torch.tensor(slopes) * along).sum()) / math.sqrt(500 * highest)
    assert float(total) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    passes = (x.detach() < (highest + 0.5) * scale) & (x.detach() > (0 if relu else (lowest - 0.5) * scale))
    assert torch.equal(x.grad, torch.where(passes, along, 0.0))


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
