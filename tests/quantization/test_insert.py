"""Where quantizers are put, and that float, fake-quantized and integer model agree where they must."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.fake_quant import quantization_parameters
from lighten.quantization.table import summary

EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(3)]


def test_inserting_changes_nothing_until_enabled(batches):
    model = lived_in(Residual())
    before, names = model(batches[0]), [n for n, _ in model.named_parameters()]
    quantize_(model, example_input=EXAMPLE)
    assert torch.equal(model(batches[0]), before)
    assert [n for n, _ in model.named_parameters()] == names
    assert isinstance(model.conv1, nn.Conv2d)
    assert not model.training


def test_fake_quantized_model_matches_a_reference_written_out(batches):
    model = lived_in(Residual())
    floating = copy.deepcopy(model)
    calibrate_(quantize_(model, example_input=EXAMPLE, weight_bits=8), batches, ranges="min_max")
    low, high = quantizers_of(model).low.tolist(), quantizers_of(model).high.tolist()

    def q(x, place):
        scale, zero = quantization_parameters(low[place], high[place])
        return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale

    def layer(x, conv, norm, place):
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps) if norm else torch.ones(3)
        weight = conv.weight * gain.view(-1, *[1] * (conv.weight.dim() - 1))
        bias = conv.bias if conv.bias is not None else torch.zeros(len(weight))
        if norm:
            bias = (bias - norm.running_mean) * gain + norm.bias
        scale = weight.flatten(1).abs().amax(1) / 127
        shape = (-1, *[1] * (weight.dim() - 1))
        weight = torch.round(weight / scale.view(shape)) * scale.view(shape)
        step = scale * quantization_parameters(low[place], high[place])[0]
        bias = torch.round(bias / step) * step
        return F.linear(x, weight, bias) if isinstance(conv, nn.Linear) else F.conv2d(x, weight, bias, padding=1)

    m = floating
    with torch.no_grad():
        x = q(batches[0], 0)
        x = q(F.relu(layer(x, m.conv1, m.norm1, 0)), 1)
        x = q(F.relu(x + q(layer(x, m.conv2, m.norm2, 1), 2)), 3)
        x = q(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1), 4)
        expected = layer(x, m.head, None, 4)
        torch.testing.assert_close(model(batches[0]), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(batches[0]), floating(batches[0]), rtol=1e-5, atol=1e-6)


def test_without_an_example_the_first_call_serves(batches):
    late, early = lived_in(Residual()), lived_in(Residual())
    calibrate_(quantize_(late), batches)
    calibrate_(quantize_(early, example_input=EXAMPLE), batches)
    assert torch.equal(late(batches[0]), early(batches[0]))


def test_keyword_arguments_reach_the_forward(batches):
    model = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches)
    assert torch.equal(model(batches[0], scale=0.5), model(batches[0] * 0.5))
    assert not torch.equal(model(x=batches[0], scale=0.5), model(batches[0]))


def test_excluded_layers_stay_in_floating_point(batches):
    model = quantize_(lived_in(Residual()), example_input=EXAMPLE, exclude=["conv2"])
    assert summary(model) == "2 layers, 5 activations in int8; in floating point: conv2 (excluded by 'conv2')"
    calibrate_(model, batches)
    assert convert(model).conv2.weight is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 1}, "weight_bits=1"),
        ({"ranges": "minmax"}, "did you mean 'min_max'"),
        ({"exclude": ["conv9"]}, "did you mean 'conv"),
        ({"exclude": ["conv1", "conv2", "head"]}, "no layer left to quantize"),
        ({"exclude": ["norm1"]}, "BatchNorm2d has no int8 form"),
    ],
)
def test_bad_settings_give_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        quantize_(Residual(), example_input=EXAMPLE, **settings)
    assert "\n" not in str(caught.value)


def test_misuse_gives_one_line(batches):
    model = quantize_(lived_in(Residual()), example_input=EXAMPLE)
    with pytest.raises(UserError, match="already"):
        quantize_(model, example_input=EXAMPLE)
    with pytest.raises(UserError, match="are off"):
        convert(model)
    with pytest.raises(UserError, match="at least one batch"):
        calibrate_(model, [])
    with pytest.raises(UserError, match="quantize_ on it first"):
        calibrate_(Residual(), batches)
    with pytest.raises(UserError, match="not finite"):
        calibrate_(model, [torch.full((2, 1, 8, 8), torch.nan)])


@pytest.mark.parametrize("ranges", ["min_max", "mse"])
def test_a_layer_that_calibration_never_reaches_is_told(ranges):
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.middle, self.far = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, deep=True):
            x = self.near(x)
            return self.far(self.middle(x)) if deep else x

    model = quantize_(Forked(), example_input=torch.zeros(2, 4))
    with pytest.raises(UserError, match=r"'middle.output' was not reached by the forward pass; name it in exclude"):
        calibrate_(model, [{"x": torch.randn(8, 4), "deep": False}], ranges=ranges)


def test_changes_in_place_leave_gradients_right():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.third = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            y = F.silu(self.first(x), inplace=True)
            z = self.second(y)
            z += y
            z = F.relu(z, inplace=True)
            return self.head(F.hardswish(self.third(z), inplace=True).mean((2, 3)))

    class Apart(InPlace):
        def forward(self, x):
            y = F.silu(self.first(x))
            return self.head(F.hardswish(self.third(F.relu(self.second(y) + y))).mean((2, 3)))

    x = torch.randn(6, 2, 5, 5)
    gradients = []
    for build in (InPlace, Apart):
        model = calibrate_(quantize_(build(), example_input=x), [x])
        model.train()(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
