"""Open dimensions as they are asked for: the file runs at other sizes as the network does, or one line says why not."""

import inspect

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lighten.delivery.export.targets import export, export_onnx
from lighten.delivery.runtimes.runners import open_runner
from lighten.errors import UserError


class Pixels(nn.Module):
    """Images of any size, to one mask of the same size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 2, 2, stride=2)

    def forward(self, image):
        return self.up(self.down(image).relu())


class Sums(nn.Module):
    """Two inputs that share a length, and two named outputs."""

    def forward(self, left, right):
        return {"sum": left + right, "mean": right.mean(1)}


class Fixed(nn.Module):
    """A forward whose code asks for one height."""

    def forward(self, image):
        if image.shape[2] == 16:  # marked
            image = image * 2
        return image.mean((2, 3))


class Pair(nn.Module):
    """A forward that takes two samples alone."""

    def forward(self, image):
        return image.view(2, 768)


class Flat(nn.Module):
    """A linear layer over all pixels: no other size runs at all."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 2)

    def forward(self, image):
        return self.head(image.flatten(1))


IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SIZES = {2: "height", 3: "width"}


def shapes(path):
    graph = onnx.load(path).graph
    return {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in (*graph.input, *graph.output)
    }


def answers(path, **feed):
    return onnxruntime.InferenceSession(path).run(None, {name: x.numpy() for name, x in feed.items()})


@pytest.mark.parametrize("given", [{"input": SIZES}, {"image": {-2: "height", 3: "width"}}])
def test_a_file_takes_the_sizes_that_are_asked_for(given, tmp_path):
    model = Pixels().eval()
    path = export_onnx(model, IMAGE, tmp_path / "x.onnx", dynamic=given)
    assert shapes(path)["input"] == ["batch", 3, "height", "width"]
    for size in ((1, 3, 18, 30), (5, 3, 8, 16)):
        x = torch.randn(size)
        assert abs(answers(path, input=x)[0] - model(x).detach().numpy()).max() < 1e-5


def test_a_batch_can_be_fixed_beside_or_named(tmp_path):
    model = Pixels().eval()
    path = export_onnx(model, IMAGE, tmp_path / "x.onnx", batch=1, dynamic={"input": {3: "width"}})
    assert shapes(path)["input"] == [1, 3, 16, "width"]
    path = export_onnx(model, IMAGE, tmp_path / "x.onnx", dynamic={"input": {0: "samples"}})
    assert shapes(path)["input"] == ["samples", 3, 16, 16]


def test_nothing_said_of_an_input_leaves_its_lengths_fixed(tmp_path):
    ids = torch.arange(12).view(2, 6)
    table = nn.Embedding(30, 4)
    assert shapes(export_onnx(table, ids, tmp_path / "x.onnx"))["input"] == ["batch", "length"]
    assert shapes(export_onnx(table, ids, tmp_path / "x.onnx", dynamic={"input": {}}))["input"] == ["batch", 6]
    assert shapes(export_onnx(table, ids, tmp_path / "x.onnx", batch=2))["input"] == [2, 6]


@pytest.mark.parametrize("form", [tuple, dict])
def test_several_inputs_and_outputs_have_names(form, tmp_path):
    left, right = torch.randn(2, 5), torch.randn(2, 5)
    example = (left, right) if form is tuple else {"left": left, "right": right}
    path = export_onnx(Sums(), example, tmp_path / "x.onnx", dynamic={"left": {1: "long"}, "right": {1: "long"}})
    names = ["input_0", "input_1"] if form is tuple else ["left", "right"]
    assert shapes(path) == {key: ["batch", "long"] for key in (*names, "sum")} | {"mean": ["batch"]}
    left, right = torch.randn(3, 9), torch.randn(3, 9)
    found = answers(path, **dict(zip(names, (left, right), strict=True)))
    assert abs(found[0] - (left + right).numpy()).max() == 0
    assert abs(found[1] - right.mean(1).numpy()).max() < 1e-6


def test_what_a_network_takes_in_multiples_alone_is_open(tmp_path):
    class Halves(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (-1, 8)).sum(2)

    path = export_onnx(Halves(), torch.randn(2, 16), tmp_path / "x.onnx", dynamic={"input": {1: "width"}})
    x = torch.randn(1, 40)
    assert abs(answers(path, input=x)[0] - x.view(1, 5, 8).sum(2).numpy()).max() < 1e-5


LINES, START = inspect.getsourcelines(Fixed)
LINE = START + next(i for i, text in enumerate(LINES) if "marked" in text)
CONSTANT = rf"\(the forward's code takes the size for a constant, test_asked.py line {LINE}\); leave"
BAD = [
    (Fixed, {"input": SIZES}, rf"the forward fixes 'height', 'input' dimension 2, at 16 {CONSTANT}"),
    (Pair, {"input": {0: "samples"}}, r"the forward fixes 'samples', 'input' dimension 0, at 2 \(shape '\[2, 768\]'"),
    (
        Flat,
        {"input": {3: "width"}},
        r"the forward fixes 'width', 'input' dimension 3, at 4 \(mat1 .*, test_asked.py line",
    ),
    (Pixels, {"imagee": SIZES}, "dynamic: no input is called 'imagee'; did you mean 'image'?"),
    (
        Pixels,
        {"input": {4: "depth"}},
        r"dynamic\['input'\]: there is no dimension 4, it has 4 of shape \(2, 3, 16, 16\)",
    ),
    (Pixels, {"input": {2: 7}}, r"dynamic\['input'\]\[2\]=7: expected a name"),
    (Pixels, {"input": ["height"]}, r"dynamic\['input'\]=\['height'\]: expected names by dimension"),
    (Pixels, ["input"], r"dynamic=\['input'\]: expected names by input and dimension"),
    (Pixels, {"input": {1: "side", 3: "side"}}, "'side' is 3 in 'input' dimension 1, and 16 in 'input' dimension 3"),
]


@pytest.mark.parametrize(("build", "given", "says"), BAD)
def test_a_wish_that_cannot_be_met_is_one_line(build, given, says, tmp_path):
    example = torch.randn(2, 3, 4, 4) if build is Flat else IMAGE
    with pytest.raises(UserError, match=says) as caught:
        export_onnx(build(), example, tmp_path / "x.onnx", dynamic=given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Steps(nn.Module):
    """A forward that answers large images in another way, which no graph says."""

    def forward(self, image):
        return image * 2 if image.shape[2] > 20 else image * 3


def test_a_file_is_run_at_other_sizes_than_the_example(tmp_path):
    with pytest.raises(UserError, match=r"inputs of \(2, 3, 21, 4\) give other numbers in onnxruntime than in PyTorch"):
        export_onnx(Steps(), torch.randn(2, 3, 18, 4), tmp_path / "x.onnx", dynamic={"input": {2: "height"}})
    with pytest.raises(UserError, match=r"inputs of \(2, 3, 12, 4\) give other numbers in onnxruntime than in PyTorch"):
        export_onnx(Steps(), torch.randn(2, 3, 24, 4), tmp_path / "x.onnx", dynamic={"input": {2: "height"}})


def test_other_targets_and_settings_do_not_contradict(tmp_path):
    with pytest.raises(UserError, match="files of target 'litert' have fixed sizes; it is for 'onnx' or 'openvino'"):
        export(Pixels(), IMAGE, tmp_path / "x.tflite", target="litert", dynamic={"input": SIZES})
    with pytest.raises(UserError, match="batch=2 fixes dimension 0 of 'input', dynamic opens it"):
        export_onnx(Pixels(), IMAGE, tmp_path / "x.onnx", batch=2, dynamic={"input": {0: "batch"}})


def test_openvino_takes_them_too(tmp_path):
    model = Pixels().eval()
    path = export(model, IMAGE, tmp_path / "x.xml", target="openvino", dynamic={"input": SIZES})
    x = torch.randn(3, 3, 20, 24)
    with open_runner(path) as runner:
        assert abs(runner.run(runner.feed(((x,), {}))) - model(x).detach().numpy()).max() < 1e-5
