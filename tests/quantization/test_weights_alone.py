"""Int8 weights alone: the network computes in float32 with the weights that int8 codes stand for."""

import copy

import onnxruntime
import pytest
import torch
from onnx import TensorProto, load_model
from torch import nn

from lighten import export_onnx, load, quantize_post_training, save
from lighten.errors import UserError
from lighten.quantization.table import quantization_rows
from lighten.quantization.weights_alone import is_weights_alone, weights_alone_


@pytest.fixture
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(324, 5)
    ).eval()  # fmt: skip


def rounded(weight, axis, bits=7):
    """A slow reference: symmetric codes, a scale an output channel."""
    limit, out = 2 ** (bits - 1) - 1, weight.detach().clone()
    for channel in range(weight.shape[axis]):
        row = out.select(axis, channel)
        scale = row.abs().max() / limit
        row.copy_((row / scale).round().clamp(-limit, limit) * scale)
    return out


def test_it_is_the_float_network_with_rounded_weights(images):
    plain = network()
    quantized = quantize_post_training(plain, [images], weight_bits=7)
    before = quantized(images)
    alone = weights_alone_(copy.deepcopy(quantized), "integers are slow")
    for index, axis in ((0, 0), (2, 1), (4, 0)):
        plain[index].weight.data = rounded(plain[index].weight, axis)
    torch.testing.assert_close(alone(images), plain(images), rtol=1e-5, atol=1e-5)
    assert is_weights_alone(alone)
    assert not is_weights_alone(quantized)
    assert torch.equal(quantized(images), before)
    assert all(row.input is None and row.output is None for row in quantization_rows(alone))


def test_it_is_loaded_as_it_was_saved(images, tmp_path):
    alone = weights_alone_(quantize_post_training(network(), [images]), "integers are slow")
    loaded = load(save(alone, tmp_path / "model"), model=network())
    assert torch.equal(loaded(images), alone(images))
    assert is_weights_alone(loaded)


def test_its_file_holds_codes_that_onnxruntime_unpacks_once(images, tmp_path):
    quantized = quantize_post_training(network(), [images])
    in_integers = export_onnx(quantized, images[:2], tmp_path / "int8.onnx")
    alone = weights_alone_(quantized)
    file = export_onnx(alone, images[:2], tmp_path / "alone.onnx")
    weights = [t for t in load_model(file).graph.initializer if len(t.dims) > 1 and t.data_type == TensorProto.INT8]
    assert len(weights) == 3
    assert file.stat().st_size < 1.05 * in_integers.stat().st_size
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), alone(images), rtol=1e-4, atol=1e-5)
    left = {node.op_type for node in load_model(tmp_path / "optimised.onnx").graph.node}
    assert not left & {"Cast", "Mul", "DequantizeLinear", "QuantizeLinear"}


def test_other_targets_say_what_to_do(images, tmp_path):
    from lighten import export

    alone = weights_alone_(quantize_post_training(network(), [images]))
    with pytest.raises(UserError, match=r"choose target 'onnx', or .*delivery\.precision=int8"):
        export(alone, images[:2], tmp_path / "model.tflite", target="litert")


@pytest.mark.parametrize("mode", [None, "dynamic", "float16"])
def test_what_has_no_quantized_activations_is_refused(mode, images):
    model = network()[:2] if mode is None else quantize_post_training(nn.Sequential(nn.Linear(4, 2)), mode=mode)
    with pytest.raises(UserError, match="no quantized activations"):
        weights_alone_(model)
