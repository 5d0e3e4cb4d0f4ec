import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.models import build_model


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_paper(depth, millions):
    """He et al. 2016, table 6, with parameter-free shortcuts (option A)."""
    model = build_model(f"resnet{depth}", num_classes=10, input_shape=(3, 32, 32), shortcut="pad")
    digits = 1 if depth == 110 else 2
    assert round(count(model) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [20, 56])
def test_depth_counts_weighted_layers(depth):
    model = build_model(f"resnet{depth}", num_classes=10, input_shape=(3, 32, 32), shortcut="pad")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_conv_shortcuts_add_two_projections():
    plain = build_model("resnet20", num_classes=10, input_shape=(3, 32, 32), shortcut="pad")
    conv = build_model("resnet20", num_classes=10, input_shape=(3, 32, 32), shortcut="conv")
    assert count(conv) - count(plain) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize(("stride", "side"), [(1, 7), (2, 4)])
def test_resolution_is_halved_per_stage(stride, side):
    model = build_model("resnet20", num_classes=10, input_shape=(1, 28, 28), width=4, blocks=1, stem_stride=stride)
    seen = []
    model.stage3.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert seen == [(2, 16, side, side)]


def test_pad_shortcut_takes_every_second_pixel_and_adds_empty_channels():
    block = build_model("resnet20", num_classes=10, input_shape=(1, 8, 8), width=4, shortcut="pad").stage2[0]
    x = torch.randn(1, 4, 8, 8)
    expected = torch.zeros(1, 8, 4, 4)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block.shortcut(x), expected)


def test_block_is_the_papers_formula():
    block = build_model("resnet20", num_classes=10, input_shape=(1, 8, 8), width=4).stage1[0].eval()
    x = torch.randn(2, 4, 8, 8)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
    assert torch.allclose(block(x), (inner + x).clamp(min=0))


def test_initialisation_is_he_normal_fan_out():
    torch.manual_seed(0)
    conv = build_model("resnet20", num_classes=10, input_shape=(1, 8, 8), width=64).stage1[0].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_blocks_override_the_depth():
    model = build_model("resnet20", num_classes=10, input_shape=(1, 8, 8), width=4, blocks=2)
    assert [len(stage) for stage in (model.stage1, model.stage2, model.stage3)] == [2, 2, 2]


def test_mean_pooling_feeds_the_head():
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=4).eval()
    x = torch.randn(2, 1, 8, 8)
    features = model.stage3(model.stage2(model.stage1(F.relu(model.bn1(model.conv1(x))))))
    pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
    assert torch.allclose(model(x), pooled @ model.head.weight.T + model.head.bias, atol=1e-6)
