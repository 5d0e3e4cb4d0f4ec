"""Pruning and quantization on one model: what is pruned widens no range, and shrinking takes the scales along."""

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten import calibrate_, mask_, plan_pruning, quantize_, shrink
from lighten.quantization import convert
from lighten.quantization.activation_quantizers import quantizers_of


class Loud(nn.Module):
    """Two convolutions; channel 0 of the first is a hundred times as loud as the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)
        lived_in(self)
        with torch.no_grad():
            self.norm.weight[0], self.norm.bias[0] = 100.0, 50.0
            self.conv1.weight[0] /= 1e4  # the quietest filter by its norm, which is what is pruned

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(self.conv2(x).relu().mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ranges", ["min_max", "mse"])
def test_a_pruned_channel_widens_no_range(images, ranges):
    loud = calibrate_(quantize_(Loud().eval(), example_input=images[:2], ranges=ranges), [images])
    model = Loud().eval()
    plan = plan_pruning(model, images[:2], 0.25, score="magnitude")
    mask_(model, plan)
    calibrate_(quantize_(model, example_input=images[:2], ranges=ranges), [images])
    place = quantizers_of(model).names.index("conv1.output")
    assert quantizers_of(model).high[place] < quantizers_of(loud).high[place] / 3
    alone = shrink(mask_(Loud().eval(), plan) or Loud().eval(), plan)
    calibrate_(quantize_(alone, example_input=images[:2], ranges=ranges), [images])
    ours, expected = quantizers_of(model), quantizers_of(alone)
    torch.testing.assert_close(ours.high, expected.high)
    torch.testing.assert_close(ours.low.clamp_max(0), expected.low.clamp_max(0))  # 0 is in any range


@pytest.mark.parametrize("bits", [8, 4])
def test_shrinking_takes_the_scales_of_what_is_left(images, bits):
    model = lived_in(Residual(8))
    plan = plan_pruning(model, images[:2], 0.5)
    mask_(model, plan)
    calibrate_(quantize_(model, example_input=images[:2], weight_bits=bits), [images])
    small = shrink(model, plan)
    assert torch.allclose(small(images), model(images), atol=1e-5)
    big, cut = convert(model), convert(small)
    assert len(cut.conv1.weight_scale) == 4
    assert (big.conv1.weight_scale > 0).all()
    kept = [i for i in range(8) if bool((model.conv1.weight[i] != 0).any())]
    assert torch.equal(cut.conv1.weight_scale, big.conv1.weight_scale[kept])
    assert torch.equal(cut.conv1.stored_weight, big.conv1.stored_weight[kept])
    assert int(cut.conv1.stored_weight.abs().max()) == 2 ** (bits - 1) - 1


def test_what_computes_through_int8_is_planned_as_the_network_that_its_weights_make(images):
    model = Loud().eval()
    expected = plan_pruning(model, images[:2], 0.5)
    int8 = calibrate_(quantize_(model, example_input=images[:2]), [images])
    before = int8(images)
    plan = plan_pruning(int8, images[:2], 0.5)
    assert plan.hash == expected.hash
    assert torch.equal(int8(images), before)
    assert shrink(int8, plan).conv1.weight.shape[0] == 4
