import numpy as np
import pytest
import torch
from torch import nn

from lighten.delivery.export.targets import export, export_onnx
from lighten.delivery.runtimes.feeds import piece_by_piece
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError


def test_file_and_module_give_the_same_logits(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4)
    with open_runner(export_onnx(model, x, tmp_path / "m.onnx")) as file, open_runner(model) as module:
        assert (file.runtime, module.runtime) == ("onnxruntime", "pytorch")
        assert file.run(file.feed(((x,), {}))) == pytest.approx(module.run(module.feed(((x,), {}))), abs=1e-6)


def test_a_module_gets_its_modes_and_threads_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    before = torch.get_num_threads()
    with open_runner(model, threads=1) as runner:
        assert not model.training
        assert torch.get_num_threads() == 1 == runner.threads
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.pt", b"", "expected a path that ends in .onnx, .xml, .tflite, .pte, .pt2, or a torch module"),
        ("gone.onnx", None, "no such file"),
        ("bad.onnx", b"no graph at all", "onnxruntime cannot read it"),
        ("bad.xml", b"no graph at all", "OpenVINO cannot read it"),
        ("bad.tflite", b"no graph at all", "LiteRT cannot read it"),
        ("bad.pte", b"no graph at all", "ExecuTorch cannot read it"),
        ("bad.pt2", b"no graph at all", "torch.export cannot read it"),
    ],
)
def test_files_that_cannot_be_run_say_so_in_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught, open_runner(tmp_path / name):
        pass
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_the_file_are_named(tmp_path):
    path = export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / "m.onnx")
    with open_runner(path) as runner:
        with pytest.raises(UserError, match=r"takes input, but a batch holds 0 unnamed input\(s\) and pixels"):
            runner.feed(((), {"pixels": torch.zeros(1, 4)}))
        with pytest.raises(UserError, match="cannot run this batch"):
            runner.run(runner.feed(((torch.zeros(1, 3),), {})))


@pytest.mark.parametrize(
    ("target", "suffix"), [("litert", ".tflite"), ("executorch", ".pte"), ("openvino", ".xml"), ("pt2", ".pt2")]
)
def test_batches_that_do_not_fit_a_file_are_refused_in_one_line(tmp_path, target, suffix):
    path = export(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / f"m{suffix}", target=target)
    with open_runner(path) as runner:
        for wrong in (((torch.zeros(2, 3),), {}), ((torch.zeros(2, 4), torch.zeros(2, 4)), {})):
            with pytest.raises(UserError, match=r"cannot run this batch|takes (1 )?input") as caught:
                runner.run(runner.feed(wrong))
            assert "\n" not in str(caught.value)


def test_pieces_of_a_fixed_batch_cover_any_batch():
    def run(feed):
        assert len(feed[0]) == 4
        return [feed[0] + feed[1]]

    x, y = np.arange(10.0).reshape(10, 1), np.ones((10, 1))
    for count in (1, 4, 10):
        assert np.array_equal(piece_by_piece([x[:count], y[:count]], 4, run)[0], x[:count] + 1)
