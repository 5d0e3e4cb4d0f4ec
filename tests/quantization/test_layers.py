"""Each kind of layer: fake-quantized against its formula written out, converted against fake-quantized."""

import io

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from quantization_nets import Residual, lived_in, per_channel, relative_error, trained_through_int8
from torch import nn

from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.fake_quant import quantization_parameters
from lighten.quantization.fold import fold_batch_norm
from lighten.quantization.integer_layers import IntegerLayer
from lighten.quantization.parameters import effective_parameters
from lighten.quantization.swap_class import born_as


def on_grid(x, low, high):
    scale, zero = quantization_parameters(low, high)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale


KINDS = {
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3), (3, 9), 0),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 9, 9), 0),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 5, 5, 5), 0),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 5), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (4, 5, 5), 1),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3), 1),
    "Linear": (lambda: nn.Linear(5, 4), (5,), 0),
    "Linear, sequences": (lambda: nn.Linear(5, 4), (7, 5), 0),
    "Conv1D": (lambda: hf.pytorch_utils.Conv1D(4, 5), (7, 5), 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_layer_is_its_formula_and_converts_bit_by_bit(name):
    build, shape, axis = KINDS[name]
    torch.manual_seed(0)
    layer = build()
    nn.init.normal_(layer.bias)
    x = torch.randn(6, *shape)
    weight = per_channel(layer.weight.detach(), axis)
    plain = [layer.weight.detach().clone(), layer.bias.detach().clone()]
    model = calibrate_(quantize_(nn.Sequential(layer), example_input=x[:2]), [x], ranges="min_max")
    with torch.no_grad():
        ours = model(x)
        layer.weight.copy_(weight)  # what follows is the float layer on rounded numbers
        floating = born_as(layer).forward(layer, on_grid(x, float(x.min()), float(x.max())))
        layer.weight.copy_(plain[0])
    torch.testing.assert_close(ours, floating, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, born_as(layer).forward(layer, x), rtol=1e-4, atol=1e-4)
    converted = convert(model)
    assert torch.equal(converted(x), ours)
    assert isinstance(converted[0], IntegerLayer)
    assert converted[0].stored_weight.dtype == torch.int8


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution_folds_its_norm(groups, bias):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=bias).double()
    norm = nn.BatchNorm2d(6).double().eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight, shift = fold_batch_norm(layer.weight, layer.bias, norm, axis=1, groups=groups)
    folded = F.conv_transpose2d(x, weight, shift, groups=groups)
    torch.testing.assert_close(folded, norm(layer(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)])
def test_gradients_of_effective_parameters_are_those_of_folding(layer, bias, affine):
    torch.manual_seed(0)
    axis, groups = (1, 2) if isinstance(layer, nn.ConvTranspose2d) else (0, 1)
    norm = nn.BatchNorm2d(6, affine=affine).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    weight = torch.randn_like(layer.weight, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None
    wanted = [t for t in (weight, shift, *norm.parameters()) if t is not None]
    outputs = effective_parameters(weight, shift, norm, 0.1, axis=axis, groups=groups)
    expected = fold_batch_norm(weight, shift, norm, axis=axis, groups=groups)
    count = 1 + any(t is not weight for t in wanted)  # the shift is a constant where there is nothing to learn in it
    along = [torch.randn_like(t) for t in expected[:count]]
    ours = torch.autograd.grad(outputs[:count], wanted, along)
    theirs = torch.autograd.grad(expected[:count], wanted, along)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    limit = float(expected[0].detach().abs().max()) / 254 * 1.01
    torch.testing.assert_close(outputs[0], expected[0], rtol=0, atol=limit)


def test_a_model_compiled_in_place_trains_through_int8_as_it_does_uncompiled():
    """Its graphs hold nothing of int8: no range becomes a constant, and nothing is compiled anew as ranges move."""

    def losses(compiled):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, images = lived_in(Residual(4)), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        graphs = []
        if compiled:
            model.compile(backend=lambda graph, example: graphs.append(graph) or graph.forward)
        quantizers = quantizers_of(quantize_(model.train(), example_input=images))
        sgd, found = torch.optim.SGD(model.parameters(), 0.01), []
        for step in range(8):
            if step == 2:
                quantizers.stage, quantizers.observing = Stage.OBSERVE, True
            loss = model(images).square().mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            if quantizers.observing:
                quantizers.update()
                quantizers.stage = Stage.ON
            found.append(loss.item())
        return found, len(graphs)

    plain, none = losses(compiled=False)
    found, graphs = losses(compiled=True)
    assert (none, graphs) == (0, 1)
    assert found == plain
    assert len(set(plain)) == len(plain)


def stem():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_hooks_see_what_each_module_computes(at):
    torch.manual_seed(0)
    model, x, seen = lived_in(stem()), torch.randn(8, 1, 8, 8), []
    expected = model[: at + 1](x)
    calibrate_(quantize_(model, example_input=x[:2]), [x])
    model[at].register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    assert relative_error(seen[0], expected) < 0.02


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_fused_kernels_do_not_go_around_quantized_layers(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation=activation, batch_first=True)
    model, x = nn.Sequential(nn.Linear(8, 16), layer), torch.randn(4, 5, 8)
    calibrate_(quantize_(model, example_input=x, weight_bits=3), [x]).eval()
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x).detach(), rtol=1e-5, atol=1e-6)


def test_dropout_in_place_behind_what_only_moves_codes_trains():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2, inplace=True), nn.Linear(4, 3)]
    model = trained_through_int8(quantize_(nn.Sequential(*stem(), *ends), example_input=x[:2]), x).train()
    model(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model[0].weight.grad.any()


def test_a_saved_model_is_the_same_when_it_is_loaded():
    torch.manual_seed(0)
    x, file = torch.randn(8, 1, 8, 8), io.BytesIO()
    model = calibrate_(quantize_(lived_in(Residual()), example_input=x[:2]), [x])
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))
