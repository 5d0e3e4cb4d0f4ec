"""Files are tried at other sizes than the example's, and take its batch where no other works."""

import warnings

import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from lighten import export_onnx
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError


class Folded(nn.Module):
    """A forward that takes batches of four alone."""

    def forward(self, x):
        return x.view(4, 3, 2).sum(2)


class Halves(nn.Module):
    """A forward whose output's shape follows the batch in another way."""

    def forward(self, x):
        return x.view(-1, 3) * 2.0


def test_a_fixed_batch_is_said_and_taken(tmp_path):
    with pytest.raises(UserError, match="Folded does not run on the example input"):
        export_onnx(Folded(), torch.randn(2, 6), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
    says = (
        r"x.onnx: Folded does not take any batch size .*; the file takes 4 a call, as the example has; give batch= for"
    )
    with pytest.warns(UserWarning, match=says):
        path = export_onnx(Folded(), torch.randn(4, 6), tmp_path / "x.onnx")
    assert path.read_bytes() == export_onnx(Folded(), torch.randn(4, 6), tmp_path / "y.onnx", batch=4).read_bytes()
    assert [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [4, 6]
    with pytest.raises(UserError, match="batch=0: expected 1 or more samples"):
        export_onnx(Folded(), torch.randn(4, 6), tmp_path / "x.onnx", batch=0)


def test_sizes_of_outputs_follow_the_batch(tmp_path):
    path = export_onnx(Halves(), torch.randn(4, 6), tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(path)
    for samples in (1, 2, 6):
        x = torch.randn(samples, 6)
        assert (session.run(None, {"input": x.numpy()})[0] == (x.view(-1, 3) * 2).numpy()).all()


@pytest.mark.slow
def test_a_detector_that_asks_for_the_length_of_its_batch_takes_any(tmp_path):
    torch.manual_seed(0)
    body = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    settings = transformers.RTDetrConfig(
        backbone_config=body, encoder_hidden_dim=16, encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16,
        encoder_in_channels=[16, 16, 16], decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_layers=1,
        decoder_attention_heads=2, encoder_layers=1, num_queries=6, num_labels=3, num_denoising=0, decoder_n_points=2,
    )  # fmt: skip
    model = transformers.RTDetrForObjectDetection(settings).eval()
    for parameter in model.parameters():  # fresh heads answer all places alike, and the best six are any
        nn.init.normal_(parameter, std=0.2)
    names = ["logits", "pred_boxes"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export_onnx(model, torch.randn(2, 3, 64, 64), tmp_path / "x.onnx", outputs=names)
    images = torch.randn(5, 3, 64, 64)
    with open_runner(path) as runner, torch.no_grad():
        assert runner.batch is None
        logits, boxes = runner.run_all(runner.feed(((images,), {})))
        expected = model(images)
    assert abs(logits - expected.logits.numpy()).max() < 1e-5
    assert abs(boxes - expected.pred_boxes.numpy()).max() < 1e-5


class Branches(nn.Module):
    """A lone sample is answered in another way: no graph of any batch size says that."""

    def forward(self, x):
        return x * 2 if x.shape[0] == 1 else x * 3


def test_what_depends_on_the_number_of_samples_is_a_file_of_that_number(tmp_path):
    with pytest.warns(UserWarning, match=r"Branches does not take any batch size .*\(1, 6\) give other numbers"):
        path = export_onnx(Branches(), torch.randn(2, 6), tmp_path / "x.onnx")
    assert [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [2, 6]


def test_what_is_wrong_in_any_batch_is_refused_for_what_it_is(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x.view(-1, 2, 3) @ x.view(-1, 3, 2)).abs()

    with pytest.raises(UserError, match="target 'onnx' cannot take Unknown"):
        export_onnx(Unknown(), torch.randn(2, 6), tmp_path / "x.onnx")


def test_the_operator_that_a_target_lacks_is_named_and_no_terminal_is_coloured(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(UserError, match=r"No ONNX function found for .*bessel_j0") as caught:
        export_onnx(Odd(), torch.randn(2, 6), tmp_path / "x.onnx")
    assert "\x1b" not in str(caught.value)
    assert "This is step" not in str(caught.value)
