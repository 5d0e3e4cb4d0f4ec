"""Folding batch norm against running layer and norm one after the other."""

import pytest
import torch
from torch import nn

from lighten.quantization.fold import fold_batch_norm, is_foldable


def _lived_in(norm):
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm.double().eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_convolution_equals_the_pair(bias, affine):
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    norm = _lived_in(nn.BatchNorm2d(5, affine=affine))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weight, shift = fold_batch_norm(conv.weight, conv.bias, norm)
    torch.testing.assert_close(conv._conv_forward(x, weight, shift), norm(conv(x)), rtol=1e-12, atol=1e-12)


def test_folded_linear_equals_the_pair_and_passes_gradients():
    linear, norm = nn.Linear(3, 5).double(), _lived_in(nn.BatchNorm1d(5))
    x = torch.randn(4, 3, dtype=torch.float64)
    weight, shift = fold_batch_norm(linear.weight, linear.bias, norm)
    folded = torch.autograd.grad(nn.functional.linear(x, weight, shift).square().sum(), [linear.weight, norm.weight])
    plain = torch.autograd.grad(norm(linear(x)).square().sum(), [linear.weight, norm.weight])
    for ours, expected in zip(folded, plain, strict=True):
        torch.testing.assert_close(ours, expected)


def test_only_norms_with_running_statistics_fold():
    assert is_foldable(nn.BatchNorm2d(3))
    assert not is_foldable(nn.BatchNorm2d(3, track_running_stats=False))
    assert not is_foldable(nn.GroupNorm(1, 3))
