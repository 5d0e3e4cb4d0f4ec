"""Model folders: what goes in comes out, to the bit, and damage is told."""

import json

import pytest
import torch

import lighten
from lighten.errors import UserError
from lighten.pruning import plan_pruning, shrink
from lighten.quantization import calibrate_, quantize_

SHAPE = (1, 12, 12)


def built():
    torch.manual_seed(0)
    return lighten.build_model("resnet20", num_classes=4, input_shape=SHAPE, width=4, blocks=1).eval()


def made(*, prune, quantize):
    model, x = built(), torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    plan = plan_pruning(model, x, 0.5) if prune else None
    if quantize:
        calibrate_(quantize_(model, example_input=x, weight_bits=6, exclude=["head"]), [x])
    return shrink(model, plan) if plan else model


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("quantize", [False, True])
def test_a_model_comes_back_as_it_was(tmp_path, prune, quantize):
    model, x = made(prune=prune, quantize=quantize), torch.randn(3, *SHAPE)
    loaded = lighten.load(lighten.save(model, tmp_path / "m"))
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.conv1.out_channels == (2 if prune else 4)
    assert (tmp_path / "m" / "compression.json").exists() == (prune or quantize)


def test_a_folder_written_again_keeps_nothing_of_before(tmp_path):
    lighten.save(made(prune=True, quantize=True), tmp_path / "m")
    model, x = built(), torch.randn(3, *SHAPE)
    loaded = lighten.load(lighten.save(model, tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_file_beside_a_folder_has_its_whole_name(tmp_path):
    folder = lighten.save(built(), tmp_path / "net-0.5")
    x = torch.randn(2, *SHAPE)
    lighten.export_onnx(built(), x, tmp_path / "net-0.5.onnx")
    assert lighten.load(folder, runtime="onnxruntime")(x).shape == (2, 4)


def test_further_facts_are_kept(tmp_path):
    lighten.save(built(), tmp_path / "m", classes=["a", "b", "c", "d"], mean=[0.5])
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["classes"] == ["a", "b", "c", "d"]
    assert config["model"]["name"] == "resnet20"
    assert config["model"]["options"]["width"] == 4


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", b"{", "config.json: cannot be read as JSON"),
        ("model.safetensors", None, "model.safetensors: cannot be read"),
        ("model.safetensors", b"12345678", "model.safetensors: cannot be read"),
        ("compression.json", b"[]", "compression.json: holds list"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, file, content, says):
    path = lighten.save(made(prune=True, quantize=False), tmp_path / "m") / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        lighten.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    lighten.save(made(prune=True, quantize=False), tmp_path / "m")
    (tmp_path / "m" / "compression.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        lighten.load(tmp_path / "m")


def test_a_file_to_run_must_be_there(tmp_path):
    lighten.save(built(), tmp_path / "m")
    with pytest.raises(UserError, match=r"m\.onnx: no such file; make it with `lighten export RUN`"):
        lighten.load(tmp_path / "m", runtime="onnxruntime")
