"""Which layers are compared, by name and by depth, on residual networks and encoders."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from lighten.distillation.match import FeatureRecorder, Match, Projection, blocks, check_shapes, match_layers
from lighten.errors import UserError
from lighten.models import build_model


def resnet(blocks: int, width: int = 8) -> nn.Module:
    return build_model("resnet20", num_classes=4, input_shape=(1, 16, 16), width=width, blocks=blocks)


def bert(layers: int) -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))


def test_blocks_are_what_a_model_repeats() -> None:
    assert blocks(resnet(2)) == [f"stage{s}.{b}" for s in (1, 2, 3) for b in (0, 1)]
    assert blocks(bert(3)) == [f"bert.encoder.layer.{i}" for i in range(3)]
    config = DistilBertConfig(n_layers=2, dim=16, n_heads=2, hidden_dim=32, vocab_size=50)
    assert blocks(DistilBertModel(config)) == ["transformer.layer.0", "transformer.layer.1"]
    mlp = build_model("mlp", num_classes=4, input_shape=(1, 4, 4), hidden=[8, 6])
    assert blocks(mlp) == ["features.0", "features.2"]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(3, 6, [1, 3, 5]), (2, 12, [5, 11]), (3, 7, [2, 4, 6]), (4, 4, [0, 1, 2, 3]), (6, 7, [1, 2, 3, 4, 5, 6])],
)
def test_uniform_spreads_over_the_teacher_and_lets_the_last_meet(ours, theirs, expected) -> None:
    found = match_layers(bert(ours), bert(theirs))
    assert [m.student for m in found] == [f"bert.encoder.layer.{i}" for i in range(ours)]
    assert [m.teacher for m in found] == [f"bert.encoder.layer.{i}" for i in expected]


def test_patterns_pair_what_they_match_in_order() -> None:
    found = match_layers(resnet(1), resnet(2), {"stage?": "stage?"})
    assert found == [Match(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"stage9": "stage1"}, "no layer of the student is called 'stage9'; did you mean"),
        ({"stage1": "stage"}, "no layer of the teacher is called 'stage'"),
        (
            {"stage?": "stage1"},
            r"matches 3 layers of the student \(stage1, stage2, stage3\), 'stage1' 1 of the teacher",
        ),
        ("uniformly", "did you mean 'uniform'"),
    ],
)
def test_names_that_do_not_pair_are_told(layers, told) -> None:
    with pytest.raises(UserError, match=told):
        match_layers(resnet(1), resnet(2), layers)


def test_a_student_deeper_than_its_teacher_is_told() -> None:
    with pytest.raises(UserError, match="the student has 4 blocks, the teacher 2"):
        match_layers(bert(4), bert(2))
    with pytest.raises(UserError, match="Linear has no blocks"):
        match_layers(nn.Linear(2, 2), bert(2))


def test_watch_keeps_one_pass_and_leaves_no_trace() -> None:
    model = resnet(1)
    watch = FeatureRecorder(model, ["stage1", "stage3", "stage1"])
    with torch.no_grad():
        model(torch.zeros(2, 1, 16, 16))
        other = copy.deepcopy(model)
        other(torch.zeros(5, 1, 16, 16))
    found = watch.take()
    assert {name: tuple(x.shape) for name, x in found.items()} == {"stage1": (2, 8, 16, 16), "stage3": (2, 32, 4, 4)}
    assert watch.take() == {}
    watch.close()
    model(torch.zeros(2, 1, 16, 16))
    assert watch.take() == {}


def test_shapes_may_differ_in_width_alone_and_both_sides_are_named() -> None:
    check_shapes("hint", Match("a", "b"), torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 4, 4))
    check_shapes("hint", Match("a", "b"), torch.zeros(2, 5, 8), torch.zeros(2, 5, 16))
    with pytest.raises(UserError, match=r"student's 'a' gives \(2, 8, 4, 4\), the teacher's 'b' \(2, 8, 8, 8\)"):
        check_shapes("hint", Match("a", "b"), torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 8, 8))
    with pytest.raises(UserError, match="pair layers of equal resolution"):
        check_shapes("hint", Match("a", "b"), torch.zeros(2, 5, 8), torch.zeros(2, 6, 8))


def test_projection_is_a_1x1_convolution_on_images() -> None:
    projection, x = Projection(3, 5, bias=False), torch.randn(2, 3, 4, 4)
    expected = torch.nn.functional.conv2d(x, projection.weight[:, :, None, None])
    torch.testing.assert_close(projection(x), expected)
    assert projection(torch.randn(2, 7, 3)).shape == (2, 7, 5)
