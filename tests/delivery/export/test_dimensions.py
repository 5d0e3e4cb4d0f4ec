"""Which dimensions a file leaves open: as many as the network takes, and no more."""

import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from lighten import export, export_onnx, measure
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError

IDS = torch.arange(12).view(2, 6) % 30


class Mean(nn.Module):
    """Tokens of any length, a float mask of the same shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)

    def forward(self, ids, mask):
        return self.head((self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Boxes(nn.Module):
    """Tokens (batch, length) and their boxes (batch, length, 4), also where the length is 4."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places, self.head = nn.Embedding(30, 16), nn.Embedding(50, 4), nn.Linear(16, 4)

    def forward(self, ids, boxes):
        return self.head((self.table(ids) + self.places(boxes).flatten(2)).mean(1))


class Positions(nn.Module):
    """Learned positions: all of them, or the first."""

    def __init__(self, *, cut):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places, self.cut = nn.Embedding(30, 16), nn.Parameter(torch.randn(1, 6, 16)), cut
        self.head = nn.Linear(16, 4)

    def forward(self, ids):
        places = self.places[:, : ids.shape[1]] if self.cut else self.places
        return self.head((self.table(ids) + places).mean(1))


class Attention(nn.Module):
    """A mask (batch, 1, length, length) beside tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)

    def forward(self, ids, mask):
        x = self.table(ids)[:, None]
        return self.head(((x @ x.transpose(2, 3) + mask).softmax(-1) @ x).mean((1, 2)))


def columns():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Linear(48, 2))


ANY = ["batch", "length"]
FOUR = torch.ones(2, 4, 4, dtype=torch.int64)
CASES = {
    "columns of a table": (columns, (IDS,), [["batch", 6]], 6),
    "float mask": (Mean, (IDS, torch.ones(2, 6)), [ANY, ANY], 9),
    "boxes": (Boxes, (IDS, torch.arange(48).view(2, 6, 4) % 50), [ANY, [*ANY, 4]], 9),
    "boxes as long as wide": (Boxes, (IDS[:, :4], FOUR), [ANY, [*ANY, 4]], 9),
    "all positions": (lambda: Positions(cut=False), (IDS,), [["batch", 6]], 6),
    "first positions": (lambda: Positions(cut=True), (IDS,), [ANY], 3),
    "square mask": (Attention, (IDS, torch.zeros(2, 1, 6, 6)), [ANY, ["batch", 1, "length", "length"]], 9),
}


@pytest.mark.parametrize("name", CASES)
def test_length_is_open_where_the_network_takes_any(name, tmp_path):
    build, inputs, expected, length = CASES[name]
    model = build().eval()
    path = export_onnx(model, inputs, tmp_path / "x.onnx")
    shapes = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in onnx.load(path).graph.input]
    assert shapes == expected
    session = onnxruntime.InferenceSession(path)
    sizes = {"batch": 3, "length": length}
    given = [
        torch.randint(2, [sizes.get(d, d) for d in shape]).to(x.dtype) + (x.is_floating_point())
        for x, shape in zip(inputs, shapes, strict=True)
    ]
    feed = dict(zip([x.name for x in session.get_inputs()], [x.numpy() for x in given], strict=True))
    assert abs(session.run(None, feed)[0] - model(*given).detach().numpy()).max() < 1e-5


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
def test_a_detector_that_fixes_its_batch_is_written_with_that_of_the_example(tmp_path):
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
    with pytest.warns(UserWarning, match=r"RTDetr.* does not take any batch size .*; the file takes 2 a call"):
        path = export_onnx(model, torch.randn(2, 3, 64, 64), tmp_path / "x.onnx", outputs=names)
    images = torch.randn(5, 3, 64, 64)
    with open_runner(path) as runner, torch.no_grad():
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


class Rows(nn.Module):
    """A classifier that takes four images alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).view(4, 8, 16).mean(2))


@pytest.mark.parametrize(("target", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_a_file_with_a_fixed_batch_is_measured_like_any_other(target, suffix, tmp_path):
    model, images = Rows().eval(), torch.randn(10, 1, 6, 6)
    with pytest.warns(UserWarning, match="takes 4 a call"):
        path = export(model, images[:4], tmp_path / f"rows.{suffix}", target=target)
    expected = torch.cat([model(images[:4]), model(images[4:8]), model(images[6:])[2:]]).detach()
    scores = measure(path, [(images[:7], expected[:7].argmax(1)), (images[7:], expected[7:].argmax(1))])
    assert scores["accuracy"] == 1.0
    assert scores["macs"] == 16 * 8 * 9 + 8 * 3
    assert set(scores["latency_ms"]) == {"batch_1", "batch_32"}
    with open_runner(path) as runner:
        assert abs(runner.run(runner.feed(((images,), {}))) - expected.numpy()).max() < 1e-5
