"""Lengths of tensors leave a batch open, and checks of values are no part of a file."""

import builtins
import sys
import warnings

import pytest
import torch
from torch import nn

from lighten import export_onnx
from lighten.delivery.export.checks import drop_checks_, open_lengths
from lighten.delivery.runtimes.runners import open_runner


class Counted(nn.Module):
    """Learned rows for each sample, as detectors of ``transformers`` ask for them."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.rand(3, 4))

    def forward(self, x):
        assert len([x, x]) == 2
        return x[:, None] * self.rows.tile([len(x), 1, 1])


class Checked(nn.Module):
    """Sizes that are a tensor are compared, and the forward stops where they differ."""

    def forward(self, x):
        sizes = torch.tensor([[2, 2]])
        torch._check_tensor_all((sizes[:, 0] * sizes[:, 1]).sum() == x.shape[1])
        return x * 2


@pytest.mark.parametrize("model", [Counted(), Checked()], ids=["counted", "checked"])
def test_the_file_takes_any_batch_without_a_word(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export_onnx(model, torch.rand(2, 4), tmp_path / "x.onnx")
    with open_runner(path) as runner:
        for samples in (1, 2, 5):
            x = torch.rand(samples, 4)
            found = runner.run_all(runner.feed(((x,), {})))[0]
            torch.testing.assert_close(torch.from_numpy(found), model(x).detach())


def test_lengths_are_plain_again_afterwards():
    own = vars(sys.modules[__name__])
    with open_lengths(Counted()):
        assert own["len"]([1, 2]) == 2
        assert own["len"](torch.rand(3, 2)) == 3
        with pytest.raises(TypeError):
            own["len"](torch.tensor(1.0))
    assert "len" not in own
    assert len is builtins.len


def test_what_is_written_into_a_tensor_is_no_check():
    class Writes(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, :2] = 0
            return y

    program = torch.export.export(Writes(), (torch.rand(2, 4),), strict=False)
    drop_checks_(program.graph)
    x = torch.rand(2, 4)
    assert torch.equal(program.module()(x), Writes()(x))
