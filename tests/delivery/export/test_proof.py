"""A file is run before anybody relies on it."""

import warnings
from pathlib import Path

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


def _written(network: torch.nn.Module, x: torch.Tensor, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its runtime may choose otherwise already
        return export_onnx(network, x, folder / "model.onnx")


class Picks(torch.nn.Module):
    """Puts out places by a score that is the same for all but for rounding, and rises or falls with one weight."""

    def __init__(self, picked: int) -> None:
        super().__init__()
        self.picked = picked
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.square().softmax(-1).sum(-1) + self.weight * x[..., 0]
        places = scores.topk(self.picked, dim=1).indices
        return self.head(x.gather(1, places[..., None].expand(-1, -1, 8)))


@pytest.mark.parametrize("picked", [4, 16])
def test_a_file_that_chooses_otherwise_over_rounding_is_warned_of(tmp_path, picked):
    """Where all places are picked, rounding decides their order alone: each is somewhere, or the file is wrong."""
    network = Picks(picked).eval()
    x = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(2))
    path = _written(network, x, tmp_path)
    other = clone(network)
    with torch.no_grad():
        other.weight += 1e-7
        assert relative_error(network(x).numpy(), other(x).numpy()) > MAX_STEP_ERROR
    with pytest.warns(UserWarning, match="chooses among nearly equal scores"):
        prove(path, Graph(other, ((x,), {})), [(x,)], quantized=False, name=path)
    with torch.no_grad():
        other.head.bias += 0.02 if picked == 16 else 10.0
    with pytest.raises(UserError, match="give other numbers"):
        prove(path, Graph(other, ((x,), {})), [(x,)], quantized=False, name=path)
