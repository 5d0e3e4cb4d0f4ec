"""Conversion: what is stored against the arithmetic of codes; what is computed against the fake-quantized model."""

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import Residual, lived_in, per_channel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lighten.errors import UserError
from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import Stage, quantizers_of
from lighten.quantization.integer_layers import IntegerEmbedding, IntegerLayer, QdqFormat

EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(3)]


def test_converted_model_is_bit_equal(batches):
    model = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches)
    converted = convert(model)
    with torch.no_grad():
        assert torch.equal(converted(batches[1]), model(batches[1]))
    assert converted.conv1.stored_weight.dtype == torch.int8
    assert converted.conv1.stored_bias.dtype == torch.int32
    assert not list(converted.parameters())


def test_ranges_that_never_saw_data_are_told():
    model = quantize_(lived_in(Residual()), example_input=EXAMPLE)
    quantizers_of(model).stage = Stage.ON  # frozen before a batch was observed
    with pytest.raises(UserError, match="no activation has a range yet; run data through the model before export"):
        convert(model)


def test_embedding_is_int8_row_by_row():
    table = nn.Embedding(11, 6, padding_idx=0)
    ids = torch.randint(0, 11, (3, 5))
    expected = F.embedding(ids, per_channel(table.weight.detach() + 1e-30, 0))
    model = nn.Sequential(table, nn.Linear(6, 2))
    calibrate_(quantize_(model, example_input=ids), [ids])
    torch.testing.assert_close(table(ids), expected, rtol=1e-5, atol=1e-6)
    table(ids).sum().backward()
    assert torch.equal(table.weight.grad[1:, 0] > 0, torch.isin(torch.arange(1, 11), ids))
    converted = convert(model)
    assert isinstance(converted[0], IntegerEmbedding)
    assert converted[0].stored_weight.dtype == torch.int8
    assert torch.equal(converted(ids), model(ids))


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_those_of_the_paper(bits):
    """Weights over their channel's largest one, biases in units of input scale times weight scale."""
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(30, 5)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    model = calibrate_(quantize_(nn.Sequential(layer), example_input=x, weight_bits=bits), [x], ranges="min_max")
    stored = convert(model)[0]
    step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    unit = step * float(x.max() - x.min()) / 255
    assert stored.stored_weight.tolist() == torch.round(weight / step[:, None]).tolist()
    assert stored.stored_bias.tolist() == torch.round(bias / unit).tolist()
    torch.testing.assert_close(stored.weight_scale.double(), step)
    torch.testing.assert_close(stored.bias_scale.double(), unit)
    torch.testing.assert_close(stored.weight.double(), step[:, None] * stored.stored_weight)


def bounds(model):
    """Return the ranges, widened to hold zero."""
    low, high = quantizers_of(model).low.clamp_max(0), quantizers_of(model).high.clamp_min(0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


class Codes(TorchDispatchMode):
    """Notes what activations are quantized with: zero point, lowest and highest code, type."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.quantized_decomposed.quantize_per_tensor.default:
            self.seen.append(args[2:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("weight_codes", [False, True])
@pytest.mark.parametrize("bias_codes", [False, True])
def test_every_format_computes_the_same_and_stores_what_it_says(batches, signed, weight_codes, bias_codes):
    model = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches)
    converted = convert(model, QdqFormat(signed, weight_codes, bias_codes))
    with Codes() as codes, torch.no_grad():
        assert torch.equal(converted(batches[1]), model(batches[1]))
    offset, dtype = (128, torch.int8) if signed else (0, torch.uint8)
    zeros = [round(min(max(-low / (high - low) * 255, 0), 255)) for low, high in bounds(model)]
    assert {seen[1:] for seen in codes.seen} == {(-offset, 255 - offset, dtype)}
    assert {seen[0] for seen in codes.seen} == {zero - offset for zero in zeros}
    layer = converted.conv2
    assert (layer.stored_weight.dtype == torch.int8) == weight_codes
    assert (layer.stored_bias.dtype == torch.int32) == bias_codes
    assert (layer.bias_scale is not None) == bias_codes
    if not weight_codes:
        codes = layer.stored_weight / layer.weight_scale[:, None, None, None]
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
        assert torch.equal(codes.abs().flatten(1).amax(1).round(), torch.full((4,), 63.0))


def test_a_model_is_converted_as_a_copy_in_eval_mode(batches):
    model = calibrate_(quantize_(lived_in(Residual()), example_input=EXAMPLE), batches).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = convert(model)
    assert model.training
    assert not any(module.training for module in converted.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(converted.norm1), type(converted.norm2)] == [nn.Identity, nn.Identity]
    assert isinstance(model.norm1, nn.BatchNorm2d)
    assert not any(isinstance(module, IntegerLayer) for module in model.modules())
    assert isinstance(converted.conv1, IntegerLayer)
    assert isinstance(converted.conv1, nn.Conv2d)


def test_the_rows_of_an_embedding_can_be_read_as_numbers():
    ids = torch.randint(0, 11, (3, 5))
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 2))
    rows = per_channel(model[0].weight.detach(), 0)
    converted = convert(calibrate_(quantize_(model, example_input=ids), [ids]))
    torch.testing.assert_close(converted[0].weight, rows, rtol=1e-5, atol=1e-6)


def test_a_float_model_is_refused():
    with pytest.raises(UserError, match=r"^Residual has no fake-quantizers; call quantize_ on it first$"):
        convert(Residual())
