"""Post-training modes as files: what they store, and that onnxruntime computes what PyTorch computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.delivery.export.targets import export_onnx
from lighten.delivery.folders.model import load, save
from lighten.delivery.measure.measure import measure
from lighten.models import build_model
from lighten.quantization.post_training import quantize_post_training
from lighten.utils.compression import record_of


class Words(nn.Module):
    """An encoder's parts: embedding, linear layers over sequences, layer norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.norm(self.down(nn.functional.gelu(self.up(self.table(ids))))).mean(1))


IDS = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))


def run(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]


def assert_equal_but_for_codes(seen, expected):
    """Compare: where processors add up in another order, single values fall to the other side of a rounding."""
    error = np.abs(seen - expected)
    assert np.median(error) < 1e-6 * np.abs(expected).max() + 1e-6
    assert error.max() < 0.02 * np.abs(expected).max()


def stored(path):
    """Return how many numbers a file holds, by type."""
    sizes = {}
    for tensor in onnx.load(path).graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type)
        sizes[kind] = sizes.get(kind, 0) + int(np.prod(tensor.dims))
    return sizes


def test_dynamic_computes_in_integers_what_pytorch_computes(tmp_path):
    model = quantize_post_training(Words(), mode="dynamic")
    path = export_onnx(model, IDS, tmp_path / "dynamic.onnx")
    with torch.no_grad():
        assert_equal_but_for_codes(run(path, IDS), model(IDS).numpy())
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulInteger") == 3
    assert not {"MatMul", "Gemm"} & set(kinds)
    assert stored(path)["INT8"] >= 50 * 16 + 16 * 32 * 2 + 16 * 3
    assert run(path, IDS[:1]).shape == (1, 3)


def test_layers_left_out_of_dynamic_stay_in_floating_point(tmp_path):
    model = quantize_post_training(Words(), mode="dynamic", exclude=["down", "Embedding"])
    path = export_onnx(model, IDS, tmp_path / "dynamic.onnx")
    with torch.no_grad():
        assert_equal_but_for_codes(run(path, IDS), model(IDS).numpy())
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("MatMulInteger"), kinds.count("MatMul")) == (2, 1)


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
def test_halves_are_stored_in_half_and_computed_in_float32(mode, tmp_path):
    model = quantize_post_training(Words(), mode=mode, exclude=["down"])
    path = export_onnx(model, IDS, tmp_path / "half.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(path, IDS), model(IDS).numpy(), rtol=1e-4, atol=1e-5)
    assert stored(path)[mode.upper()] == 50 * 16 + 16 * 32 + 16 * 3
    whole = export_onnx(Words(), IDS, tmp_path / "float.onnx")
    assert path.stat().st_size < whole.stat().st_size - 2 * (50 * 16 + 16 * 32) + 1500


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
def test_halves_of_convolutions_hold_their_norm(mode, tmp_path):
    model = quantize_post_training(lived_in(Residual(32)), mode=mode, exclude=["conv2"])
    path = export_onnx(model, torch.zeros(2, 1, 8, 8), tmp_path / "half.onnx")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), model(x).numpy(), rtol=0, atol=0.02)
    assert stored(path)[mode.upper()] == 32 * 9 + 32 * 3


def test_dynamic_convolutions_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"dynamic quantization of 2 convolution\(s\): onnxruntime .* slower"):
        model = quantize_post_training(lived_in(Residual()), mode="dynamic")
    path = export_onnx(model, torch.zeros(2, 1, 8, 8), tmp_path / "dynamic.onnx")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), model(x).numpy(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "mode", ["static", "dynamic", *(pytest.param(m, marks=pytest.mark.slow) for m in ("float16", "bfloat16"))]
)
def test_folders_bring_every_mode_back(mode, tmp_path):
    torch.manual_seed(0)
    model = build_model("mlp", num_classes=3, input_shape=(1, 6, 6)).eval()
    x = torch.randn(40, 1, 6, 6)
    small = quantize_post_training(model, [x], mode=mode)
    record_of(small).quantization["calibration"] = {"samples": 40, "split": "val"}
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(again(x), small(x))
    assert record_of(again).quantization == record_of(small).quantization
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    save(model, tmp_path / "whole")
    whole = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert size < 0.6 * whole if "float16" in mode else size <= 1.05 * whole
    files = [export_onnx(net, x[:2], tmp_path / f"{i}.onnx") for i, net in enumerate((small, again))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert measure(files[0], [(x, torch.zeros(40, dtype=torch.long))])["parameters"] > 1000
