"""Counts against formulas written out, and the two counters against each other."""

import onnx
import pytest
import torch
from quantization_nets import Residual, lived_in
from torch import nn

from lighten.delivery.export.targets import export_onnx
from lighten.delivery.runtimes.onnx_count import count_onnx
from lighten.delivery.runtimes.runners import count_torch, open_runner
from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_


class Mixed(nn.Module):
    """Strided, grouped, depthwise and transposed convolutions, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 5, padding=2, groups=12)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.up(self.depthwise(self.grouped(self.plain(x)))).mean((2, 3)))


MIXED_MACS = 4 * 4 * (8 * 3 * 9 + 12 * 2 * 9 + 12 * 25) + 4 * 4 * 12 * (4 * 2 * 2) + 4 * 5
MIXED_PARAMETERS = (8 * 27 + 8) + 12 * 2 * 9 + (12 * 25 + 12) + (12 * 4 * 4 + 4) + (4 * 5 + 5)
SAMPLE = ((torch.zeros(1, 3, 8, 8),), {})


def test_torch_modules_are_counted_by_the_book():
    assert count_torch(Mixed(), SAMPLE) == {
        "parameters": MIXED_PARAMETERS,
        "macs": MIXED_MACS,
        "bytes": 4 * MIXED_PARAMETERS,
    }


def test_files_are_counted_as_modules_are(tmp_path):
    path = export_onnx(Mixed(), SAMPLE[0][0], tmp_path / "mixed.onnx")
    size = count_onnx(path, {"input": SAMPLE[0][0].numpy()})
    assert size == {"parameters": MIXED_PARAMETERS, "macs": MIXED_MACS, "bytes": path.stat().st_size}


def test_an_int8_file_has_the_parameters_of_its_layers_and_no_scale_counts(tmp_path):
    x = torch.randn(4, 1, 8, 8)
    model = calibrate_(quantize_(lived_in(Residual(8)), example_input=x), [x])
    path = export_onnx(model, x, tmp_path / "int8.onnx")
    with open_runner(path) as runner:
        size = runner.count(((x[:1],), {}))
    folded = 8 * 9 + 8 + 8 * 8 * 9 + 8 + 8 * 3 + 3  # batch norm is gone, both convolutions have a bias
    assert size["parameters"] == folded
    assert size["macs"] == 64 * 8 * 9 + 64 * 8 * 8 * 9 + 8 * 3


def test_weights_beside_the_file_count_as_its_bytes(tmp_path):
    path = export_onnx(Mixed(), SAMPLE[0][0], tmp_path / "whole.onnx")
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="apart.bin", size_threshold=0)
    size = count_onnx(apart, {"input": SAMPLE[0][0].numpy()})
    assert size["bytes"] == apart.stat().st_size + (tmp_path / "apart.bin").stat().st_size
    assert size["parameters"] == MIXED_PARAMETERS


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match="not a readable ONNX file") as caught:
        count_onnx(tmp_path / "x.onnx", {})
    assert "\n" not in str(caught.value)
