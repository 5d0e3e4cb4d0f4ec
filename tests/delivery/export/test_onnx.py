"""The graph of an ONNX file: its inputs and outputs by name."""

import onnx
import torch
from torch import nn

from lighten import export_onnx


def test_an_output_that_is_called_as_an_input_gets_a_name_of_its_own(tmp_path):
    class Net(nn.Module):
        def forward(self, features):
            return {"logits": features + 1, "features": features * 2}

    file = export_onnx(Net(), {"features": torch.zeros(2, 3)}, tmp_path / "net.onnx")
    graph = onnx.load(file).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["features", "logits", "features_out"]
