"""A file is run before anybody relies on it."""

import pytest
import torch
from quantization_nets import Residual, lived_in

from lighten.delivery.export.proof import MAX_INT8_ERROR, MAX_STEP_ERROR, prove, relative_error
from lighten.delivery.export.targets import export_onnx
from lighten.delivery.runtimes.signature import Graph
from lighten.errors import UserError
from lighten.quantization import calibrate_, quantize_
from lighten.utils.clone import clone


def test_a_wrong_int8_file_does_not_hide_behind_coarse_codes(tmp_path):
    """What rounding does to the outputs is known: a file that is further off computes something else."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(3)]
    model = lived_in(Residual(8))
    calibrate_(quantize_(model, example_input=batches[0], weight_bits=7), batches)
    path = export_onnx(model, batches[0], tmp_path / "model.onnx")
    prove(path, Graph(model, ((batches[0],), {})), [(batches[0],)], quantized=True, name=path)
    other = clone(model)
    with torch.no_grad():
        last = [m for m in other.modules() if isinstance(m, torch.nn.Linear)][-1]
        right = other(batches[0])
        last.bias += 0.12 * right.norm() / right.numel() ** 0.5
        assert MAX_STEP_ERROR < relative_error(right.numpy(), other(batches[0]).numpy()) < MAX_INT8_ERROR
    with pytest.raises(UserError, match="give other numbers in onnxruntime than in PyTorch"):
        prove(path, Graph(other, ((batches[0],), {})), [(batches[0],)], quantized=True, name=path)
