"""Fused kernels: the arithmetic of fake-quantization written out in tensor operations is what they must give.

Without a GPU they run in Triton's interpreter, on the CPU, in a process that was told so.
"""

from types import SimpleNamespace

import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.quantization import fake_quant, fused, observe, parameters, quantize_
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.fake_quant import code_limit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {"flat": (5,), "odd": (3, 7, 11, 13), "several programs": (70_001,), "empty": (0, 4)}


def draw(shape, dtype=torch.float32, seed=0):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype).to(DEVICE)


def in_float(x, scale, zero_point):
    codes = (x.float() * (1.0 / scale)).round().clamp(-zero_point, 255 - zero_point)
    return (codes * scale).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("scale", "zero_point"), [(0.05, 100), (0.0123, 0), (2.0**-20, 255)])
def test_an_activation_gets_the_codes_of_float32_arithmetic(shape, scale, zero_point, inplace, dtype):
    x = draw(shape, dtype)
    expected = in_float(x, scale, zero_point)
    y = fused.round_activation(x, scale, zero_point, inplace=inplace)
    assert (y is x) == inplace
    if DEVICE == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts off where a GPU rounds
        assert ((y - expected).abs() <= expected.abs() / 128).all()
    else:
        assert torch.equal(y, expected)


def test_halves_go_to_the_even_code_and_nan_stays():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, torch.nan, torch.inf, -torch.inf], device=DEVICE)
    y = fused.round_activation(x, 1.0, 2, inplace=False)
    assert y[:5].tolist() == [0, 2, 2, 0, -2]
    assert y[5].isnan()
    assert y[6:].tolist() == [253, -2]


@pytest.mark.parametrize("memory", ["contiguous", "channels last", "transposed"])
def test_the_layout_is_kept(memory):
    x = draw((4, 6, 5, 5))
    x = {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.permute(3, 0, 2, 1),
    }[memory]
    assert fused.is_dense(x)
    y = fused.round_activation(x, 0.05, 100, inplace=False)
    assert torch.equal(y, in_float(x, 0.05, 100))
    assert y.stride() == x.stride()


def test_what_has_holes_or_overlaps_is_not_dense():
    x = draw((4, 6))
    assert not fused.is_dense(x[:, :3])
    assert not fused.is_dense(x[:1].expand(4, 6))
    assert fused.is_dense(x[1:])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_extremes_are_seen_on_the_way(relu, inplace):
    parts = [draw((20_000,), seed=seed) for seed in (1, 2)]
    seen = torch.full((3, 2), -torch.inf, device=DEVICE)
    both = torch.cat(parts).relu() if relu else torch.cat(parts)
    for part in parts:
        fused.round_activation(part, 0.05, 0, inplace=inplace, seen=seen[1], relu=relu)
    assert seen[1].tolist() == [-float(both.min()), float(both.max())]
    assert (seen[[0, 2]] == -torch.inf).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen(value):
    x = draw((10_000,))
    x[7_777] = value
    seen = torch.full((2,), -torch.inf, device=DEVICE)
    fused.round_activation(x, 0.05, 0, inplace=False, seen=seen)
    assert seen.max() == torch.inf


class Case(nn.Module):
    """A layer, and the norm behind it or none, that have lived."""

    def __init__(self, layer, norm):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = layer, norm
        if norm is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
        self.to(DEVICE)


CASES = {
    "convolution and norm": lambda: Case(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8)),
    "without bias": lambda: Case(nn.Conv2d(5, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "depthwise": lambda: Case(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)),
    "norm without weights": lambda: Case(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "no norm": lambda: Case(nn.Conv2d(5, 8, 3), None),
    "large filters": lambda: Case(nn.Linear(3000, 7), None),
    "neither": lambda: Case(nn.Linear(12, 7, bias=False), None),
    "channels last": lambda: Case(nn.Conv2d(5, 8, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("unit", [0.02, 1e-12, None], ids=["bias rounded", "bias decides the scale", "float bias"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_layers_parameters_and_gradients_are_those_of_tensor_operations(name, bits, unit, monkeypatch):
    case = CASES[name]()
    layer, norm = case.layer, case.norm
    trained = [p for p in case.parameters() if norm is None or p is not norm.bias or norm.affine]

    def run():
        pair = parameters.effective_parameters(layer.weight, layer.bias, norm, unit, bits=bits)
        made = [p for p in pair if p is not None]
        upstream = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE) for p in made]
        return [p.detach() for p in made], torch.autograd.grad(made, trained, upstream)

    used = []
    monkeypatch.setattr(parameters, "kernels_for", lambda x: None)
    expected = run()
    monkeypatch.setattr(parameters, "kernels_for", lambda x: used.append(x) or fused)
    found = run()
    assert used
    step = (expected[0][0].abs().flatten(1).amax(1) / code_limit(bits)).view(-1, *[1] * (layer.weight.dim() - 1))
    off = ((found[0][0] - expected[0][0]).abs() > 1e-3 * step).float().mean()
    assert off <= (0 if DEVICE == "cpu" else 0.02)  # a GPU's square roots differ in the last bit, and so may a code
    for a, b in zip(found[0][1:], expected[0][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("is_cuda", "dtype", "dense", "found"),
    [
        (True, torch.float32, True, True), (True, torch.bfloat16, True, True), (True, torch.float64, True, False),
        (True, torch.float32, False, False), (False, torch.float32, True, False),
    ],
)  # fmt: skip
def test_kernels_are_for_gpus_and_what_they_can_read(is_cuda, dtype, dense, found, monkeypatch):
    monkeypatch.setattr(fused, "is_dense", lambda x: dense)
    assert fake_quant.kernels_for(SimpleNamespace(is_cuda=is_cuda, dtype=dtype)) is (fused if found else None)


def test_a_model_trains_by_kernels_as_by_tensor_operations(monkeypatch):
    """Two batches an update: what is seen gathers over both, and none of it is carried into the next."""

    def trained(kernels):
        for module in (fake_quant, observe, parameters):
            monkeypatch.setattr(module, "kernels_for", kernels)
        torch.manual_seed(0)
        model = lived_in(Residual(4)).train().to(DEVICE)
        quantizers = quantizers_of(quantize_(model, example_input=draw((2, 1, 8, 8))))
        quantizers.stage, quantizers.observing = Stage.OBSERVE, True
        sgd, ranges, losses = torch.optim.SGD(model.parameters(), 0.01), [], []
        for step in range(4):
            sgd.zero_grad()
            for half in range(2):
                loss = model(draw((8, 1, 8, 8), seed=2 * step + half) * (4 - step)).square().mean()
                loss.backward()
                losses.append(loss.item())
            quantizers.update()
            quantizers.stage = Stage.ON
            sgd.step()
            ranges.append(torch.stack([quantizers.low, quantizers.high]).cpu())
        return torch.stack(ranges), losses

    used = []
    expected = trained(lambda x: None)
    found = trained(lambda x: used.append(x) or fused)
    assert used
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    assert not torch.equal(expected[0][1], expected[0][3])
