"""Names of what goes in and comes out, and a file that holds all of it."""

from collections import namedtuple
from dataclasses import dataclass

import onnx
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lighten.delivery.export.targets import export, export_onnx
from lighten.delivery.runtimes.runners import open_runner
from lighten.delivery.runtimes.signature import Graph, named_inputs, named_outputs
from lighten.errors import UserError

A, B, C = torch.zeros(1), torch.ones(2), torch.ones(3)
Pair = namedtuple("Pair", "kind box")


@dataclass
class Answer:
    score: torch.Tensor
    boxes: list
    note: str = "none"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (A, {"logits": A}),
        ((A, B), {"logits": A, "output_1": B}),
        ([A, None, B], {"logits": A, "output_2": B}),
        ({"kind": A, "box": B}, {"kind": A, "box": B}),
        ({"aux": B, "logits": A}, {"logits": A, "aux": B}),
        (Pair(A, B), {"kind": A, "box": B}),
        (Answer(A, [B, C]), {"score": A, "boxes_0": B, "boxes_1": C}),
        (SequenceClassifierOutput(logits=A, hidden_states=(B,)), {"logits": A, "hidden_states_0": B}),
        ((A, {"a.b": B}), {"logits": A, "output_1_a_b": B}),
    ],
)  # fmt: skip
def test_every_tensor_of_an_output_has_a_name_and_the_leading_one_is_first(output, expected):
    found = named_outputs(output)
    assert list(found) == list(expected)
    assert all(found[name] is expected[name] for name in expected)


def test_an_output_without_a_tensor_is_refused():
    with pytest.raises(UserError, match="the model returns str without a tensor"):
        named_outputs("none")


def test_inputs_are_named_by_place_keyword_index_and_key():
    assert list(named_inputs(((A,), {}))) == ["input"]
    assert list(named_inputs(((A, B), {"mask": C}))) == ["input_0", "input_1", "mask"]
    assert list(named_inputs((([A, B], {"x": C}), {"deep": {"y": (A,)}, "flag": True}))) == [
        "input_0_0", "input_0_1", "input_1_x", "deep_y_0",
    ]  # fmt: skip


class Several(nn.Module):
    """Two heads; takes a list and a dict, returns an input, a tensor twice, a number of no dimension."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.kind, self.box = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, pair, other, *, scale=1.0):
        features = self.body(pair[0] + pair[1] * other["x"]).relu() * scale
        box = self.box(features)
        return {"kind": self.kind(features), "box": box, "again": [box, pair[0]], "mean": features.mean()}


def call(samples):
    return ([torch.randn(samples, 8), torch.randn(samples, 8)], {"x": torch.randn(samples, 8)})


def test_a_file_has_all_outputs_and_takes_nested_inputs(tmp_path):
    model = Several().train()
    path = export_onnx(model, call(2), tmp_path / "several.onnx")
    assert model.training
    graph = onnx.load(path).graph
    assert [x.name for x in graph.input] == ["input_0_0", "input_0_1", "input_1_x"]
    assert [x.name for x in graph.output] == ["kind", "box", "again_0", "again_1", "mean"]
    for samples in (1, 2, 5):
        given = call(samples)
        with open_runner(path) as runner:
            found = runner.run_all(runner.feed((given, {})))
            leading = runner.run(runner.feed((given, {})))
        expected = [x.detach().numpy() for x in named_outputs(model.eval()(*given)).values()]
        assert all(abs(a - b).max() < 1e-5 and a.shape == b.shape for a, b in zip(found, expected, strict=True))
        assert (leading == found[0]).all()


def test_outputs_can_be_chosen(tmp_path):
    path = export_onnx(Several(), call(2), tmp_path / "box.onnx", outputs=["box", "kind"])
    assert [x.name for x in onnx.load(path).graph.output] == ["box", "kind"]
    with pytest.raises(UserError, match=r"outputs='bok': did you mean 'box'\? Choices: again_0, again_1, box"):
        export_onnx(Several(), call(2), tmp_path / "none.onnx", outputs=["bok"])
    assert not (tmp_path / "none.onnx").exists()


@pytest.mark.parametrize(("target", "end"), [("openvino", "xml"), ("executorch", "pte")])
def test_other_targets_have_all_outputs_too(target, end, tmp_path):
    model = Several().eval()
    path = export(model, call(2), tmp_path / f"several.{end}", target=target, outputs=["kind", "mean"])
    given = call(1)
    with open_runner(path) as runner:
        found = runner.run_all(runner.feed((given, {})))
    expected = [model(*given)[name].detach().numpy() for name in ("kind", "mean")]
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(found, expected, strict=True))


def test_a_graph_puts_constants_back():
    model = Several().eval()
    given = (call(2), {"scale": 3.0})
    graph = Graph(model, given)
    assert torch.equal(graph(*named_inputs(given).values())[0], model(*given[0], scale=3.0)["kind"])
