"""What is made ready for a file: quantized parts wherever they are, other precisions, computed weights."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lighten.delivery.export.prepare import plain_copy
from lighten.delivery.export.targets import export, export_onnx
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError
from lighten.quantization.post_training import quantize_post_training

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4))


def answers(path, x):
    with open_runner(path) as runner:
        return torch.from_numpy(runner.run(runner.feed(((x,), {}))))


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("mode", "operator"), [("static", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear"), ("float16", "Cast")]
)
def test_a_quantized_part_is_quantized_in_the_file_and_the_rest_is_not(mode, operator, tmp_path):
    small = quantize_post_training(net(), [X], mode=mode)
    alone = export_onnx(small, X, tmp_path / "alone.onnx")
    head = nn.Linear(4, 8)
    path = export_onnx(nn.Sequential(nn.Flatten(), nn.ModuleDict({"x": small})["x"], head), X, tmp_path / "x.onnx")
    assert operators(path).count(operator) == operators(alone).count(operator) > 0
    assert not {"Round", "Clip"} & set(operators(path))
    assert path.stat().st_size < alone.stat().st_size + 1500
    expected = head(small(X)).detach()
    assert (answers(path, X) - expected).norm() < 0.02 * expected.norm()


def test_every_place_of_the_network_is_quantized_in_the_file(tmp_path):
    """Functions and modules alike: a tracer calls modules in a way of its own."""
    small = quantize_post_training(net(), [X])
    path = export_onnx(small, X, tmp_path / "x.onnx")
    assert operators(path).count("QuantizeLinear") == len(small.activation_ranges.names) == 2


@pytest.mark.parametrize(("target", "end"), [("openvino", "xml"), ("litert", "tflite"), ("executorch", "pte")])
def test_other_targets_take_a_quantized_part_or_say_that_they_do_not(target, end, tmp_path):
    around = {m: nn.Sequential(quantize_post_training(net(), [X], mode=m), nn.Tanh()) for m in ("static", "dynamic")}
    path = export(around["static"], X, tmp_path / f"x.{end}", target=target)
    expected = around["static"](X).detach()
    assert (answers(path, X) - expected).norm() < 0.02 * expected.norm()
    if target != "openvino":
        with pytest.raises(UserError, match=f"target '{target}' has no form of a model that mode 'dynamic' quantized"):
            export(around["dynamic"], X, tmp_path / f"y.{end}", target=target)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [7, 4, 2])
def test_files_hold_the_codes_of_the_network(mode, bits, tmp_path):
    small = quantize_post_training(net(), [X], mode=mode, weight_bits=bits)
    path = export_onnx(small, X, tmp_path / "x.onnx")
    codes = [onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer if i.data_type == 3]
    codes = [c.astype(int) for c in codes if c.ndim == 2]
    assert [abs(c).max() for c in codes] == [2 ** (bits - 1) - 1] * 2
    torch.testing.assert_close(answers(path, X), small(X).detach(), rtol=0, atol=1e-5 if mode == "dynamic" else 0.02)


def test_by_default_no_sum_of_two_products_leaves_16_bits(tmp_path):
    """x86 without VNNI adds pairs of u8 times s8 in 16 bits; weights and inputs here are as large as they get."""
    wide = nn.Sequential(nn.Linear(64, 4, bias=False))
    nn.init.constant_(wide[0].weight, 1.0)
    x = torch.full((8, 64), 1.0)
    for mode in ("static", "dynamic"):
        small = quantize_post_training(wide, [x], mode=mode)
        path = export_onnx(small, x, tmp_path / f"{mode}.onnx")
        torch.testing.assert_close(answers(path, x), torch.full((8, 4), 64.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("dtype", "quantized"),
    [(torch.bfloat16, False), (torch.float16, False), (torch.float64, False), (torch.bfloat16, True)],
)
def test_other_precisions_become_float32(dtype, quantized, tmp_path):
    model, x = net().to(dtype), X.to(dtype)
    model = quantize_post_training(model, [x]) if quantized else model
    path = export_onnx(model, x, tmp_path / "x.onnx")
    assert next(model.parameters()).dtype == dtype
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    expected = model(x).float().detach()
    assert (answers(path, X) - expected).norm() < 0.03 * expected.norm()


def test_int8_is_not_made_of_float16():
    with pytest.raises(UserError, match=r"Sequential computes in float16, too coarse .* in float32"):
        quantize_post_training(net().half(), [X.half()])


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer


CHANGES = [
    masked,
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_computed_weights_are_written_as_they_are_now(change, tmp_path):
    model = nn.Sequential(change(nn.Linear(12, 16)), nn.ReLU(), change(nn.Linear(16, 4)))
    model(X).sum().backward()
    model.eval()
    expected = model(X).detach()
    names = [name for name, _ in model.named_parameters()]
    assert torch.allclose(plain_copy(model)(X), expected, atol=1e-6)
    assert torch.equal(model(X), expected)
    torch.testing.assert_close(answers(export_onnx(model, X, tmp_path / "x.onnx"), X), expected)
    assert [name for name, _ in model.named_parameters()] == names
    for mode in ("static", "dynamic", "float16"):
        small = quantize_post_training(model, [X], mode=mode)
        assert (small(X) - expected).norm() < 0.05 * expected.norm()
