"""Static, dynamic and 16-bit quantization of trained models in PyTorch."""

import copy

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_
from lighten.quantization.fake_quant import quantization_parameters
from lighten.quantization.post_training import quantize_post_training


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.zeros(8)) for _ in range(3)]


def test_static_is_inserting_and_calibrating(batches):
    model = lived_in(Residual())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = quantize_post_training(model, iter(batches), ranges="mse", weight_bits=7, exclude=["head"])
    expected = copy.deepcopy(model)
    quantize_(expected, example_input=batches[0][0], ranges="mse", weight_bits=7, exclude=["head"])
    calibrate_(expected, batches)
    assert torch.equal(ours(batches[0][0]), expected(batches[0][0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model, "activation_ranges")


def test_dynamic_takes_the_range_of_each_call():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    model = quantize_post_training(nn.Sequential(layer), mode="dynamic", weight_bits=8)
    for spread in (1.0, 100.0):
        x = torch.randn(9, 6) * spread
        scale, zero = quantization_parameters(float(x.min()), float(x.max()))
        x_on_grid = (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale
        step = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        weight = torch.round(layer.weight.detach() / step) * step
        expected = nn.functional.linear(x_on_grid, weight, layer.bias)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * spread)
        assert not torch.allclose(model(x), layer(x), rtol=1e-4, atol=1e-4 * spread)


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
def test_halves_round_weights_and_nothing_else(mode, batches):
    model = lived_in(Residual())
    half = quantize_post_training(model, mode=mode, exclude=["conv2"])
    dtype = getattr(torch, mode)
    for name, value in model.state_dict().items():
        rounded = name in ("conv1.weight", "head.weight")
        assert torch.equal(half.state_dict()[name], value.to(dtype).float() if rounded else value), name
    assert not torch.equal(half(batches[0][0]), model(batches[0][0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "statik"}, "did you mean 'static'"),
        ({"mode": "static"}, "needs calibration data"),
        ({"mode": "static", "batches": []}, "at least one batch"),
        ({"mode": "static", "batches": [{"labels": torch.zeros(3)}]}, "labels alone"),
        ({"mode": "dynamic", "weight_bits": 9}, "weight_bits=9: expected a whole number, 2 to 8"),
        ({"mode": "dynamic", "exclude": ["conv"]}, "matches no layer"),
    ],
)
def test_bad_requests_give_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        quantize_post_training(Residual(), **settings)
    assert "\n" not in str(caught.value)


def test_numbers_too_large_for_float16_are_named(batches):
    model = Residual()
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"head.weight holds numbers beyond float16's largest; use bfloat16"):
        quantize_post_training(model, mode="float16")
    with pytest.raises(UserError, match="Residual is quantized already"):
        quantize_post_training(quantize_post_training(Residual(), mode="bfloat16"), mode="dynamic")


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(4, 8)

    def forward(self, x1, x2):
        return self.a(x1) + self.b(x2)


def test_a_model_of_two_inputs_is_calibrated_with_both_once_the_parts_are_named():
    x1, x2, labels = torch.randn(32, 3), torch.randn(32, 4), torch.zeros(32)
    model = Both()
    with pytest.raises(UserError, match="nothing says what they are"):
        quantize_post_training(model, [(x1, x2, labels)])
    with pytest.raises(UserError, match=r"Both.forward takes \(x1, x2\)"):
        quantize_post_training(model, [(x1, x2)])
    roles = ("input", "input", "label")
    named = quantize_post_training(model, [(x1, x2, labels)], batch=roles)
    nested = quantize_post_training(model, [((x1, x2), labels)])
    assert torch.equal(named(x1, x2), nested(x1, x2))
    assert torch.allclose(named(x1, x2), model(x1, x2), atol=0.1)


def test_batches_of_inputs_alone_are_taken_as_loaders_give_them(batches):
    model = lived_in(Residual())
    alone = quantize_post_training(model, [[x] for x, _ in batches])
    assert torch.equal(alone(batches[0][0]), quantize_post_training(model, batches)(batches[0][0]))
