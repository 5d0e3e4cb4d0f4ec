"""Which dimensions a file leaves open: as many as the network takes, and no more."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lighten import export, export_onnx, measure
from lighten.delivery.runtimes.runners import open_runner

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
