import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import lighten
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.utils.compression import record_of

SMALL = "test_resnet"
"""A network of timm's own tests: four blocks, 24 to 384 channels."""


def network(name=SMALL, num_classes=5, input_shape=(3, 32, 32), **options):
    torch.manual_seed(0)
    return build_model("timm", num_classes=num_classes, input_shape=input_shape, name=name, **options).eval()


@pytest.fixture
def weights(vision, tmp_path):
    """A file of weights for 1,000 classes, and the network that they come from."""
    import timm

    torch.manual_seed(7)
    model = timm.create_model(SMALL).eval()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return str(path), model


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        (SMALL, (1, 40, 32), {"in_chans": 1}),
        ("test_resnet.r160_in1k", (3, 32, 32), {}),
        ("test_vit", (3, 64, 32), {"img_size": (64, 32)}),
        ("test_mambaout", (4, 64, 64), {"in_chans": 4}),
    ],
)
def test_it_is_the_librarys_own_network(vision, name, shape, options):
    import timm

    found = network(name, 5, shape)
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=5, **options).eval()
    x = torch.randn(2, *shape)
    assert torch.equal(found(x), expected(x))
    assert found(x).shape == (2, 5)


def test_a_file_gives_all_its_weights(weights):
    path, theirs = weights
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(num_classes=1000, pretrained=path)(x), theirs(x))


def test_another_count_of_classes_gets_a_fresh_head(weights):
    path, theirs = weights
    model = network(num_classes=7, pretrained=path)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    assert torch.equal(model.forward_features(x), theirs.forward_features(x))


def test_grey_images_are_read_as_three_equal_colours(weights):
    path, theirs = weights
    x = torch.randn(2, 1, 32, 32)
    found = network(input_shape=(1, 32, 32), pretrained=path).forward_features(x)
    torch.testing.assert_close(found, theirs.forward_features(x.expand(2, 3, 32, 32)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [3, 1000])
def test_a_file_of_weights_for_a_head_of_its_own_or_none(weights, tmp_path, classes):
    theirs = weights[1]
    theirs.reset_classifier(3)
    whole = theirs.state_dict()
    save_file(whole, tmp_path / "three.safetensors")
    body = {key: value for key, value in whole.items() if not key.startswith("fc.")}
    save_file(body, tmp_path / "body.safetensors")
    x = torch.randn(2, 3, 32, 32)
    for name in ("three", "body"):
        model = network(num_classes=classes, pretrained=str(tmp_path / f"{name}.safetensors"))
        assert torch.equal(model.forward_features(x), theirs.forward_features(x))
        assert torch.equal(model.fc.weight, theirs.fc.weight) if (name, classes) == ("three", 3) else True
        assert model(x).shape == (2, classes)


@pytest.mark.parametrize("classes", [7, 1000])
def test_a_file_of_other_weights_is_refused_whatever_the_head(weights, tmp_path, classes):
    path = str(tmp_path / "other.safetensors")
    state = weights[1].state_dict()
    del state["layer2.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"model timm: test_resnet cannot get its weights .*layer2\.0\.conv1\.weight"):
        network(num_classes=classes, pretrained=path)


def test_the_spec_needs_no_file(weights):
    model = network(pretrained=weights[0])
    spec = json.loads(json.dumps(record_of(model).spec))
    assert spec["options"] == {"name": SMALL, "pretrained": False}
    again = build_model(spec["name"], num_classes=5, input_shape=spec["input_shape"], **spec["options"])
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), model(x))


def test_it_is_pruned_saved_and_loaded(vision, tmp_path):
    model, x = network(), torch.randn(2, 3, 32, 32)
    plan = lighten.plan_pruning(model, x, 0.5)
    small = lighten.shrink(model, plan).eval()
    lighten.mask_(model, plan)
    torch.testing.assert_close(small.double()(x.double()), model.double()(x.double()), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    loaded = lighten.load(lighten.save(small.float(), tmp_path / "small"))
    assert torch.equal(loaded(x), small(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "resnet81"}, "model timm: name='resnet81' is unknown among "),
        ({"name": "resnet81"}, "; did you mean 'resnet18'? Choices: "),
        ({"name": "resnet18.a1_in2k"}, "did you mean 'resnet18.a1_in1k'?"),
        ({"name": "hf-hub:someone/model"}, "name='hf-hub:someone/model' is unknown"),
        ({"name": SMALL, "pretrained": "w.pth"}, "expected true, false or a file that ends with .safetensors"),
        ({"name": SMALL, "pretrained": "https://x/w.safetensors"}, "expected true, false or a file"),
        ({"name": SMALL, "pretrained": 1}, "pretrained=1, expected true, false or a file"),
        ({"name": SMALL, "pretrained": "no.safetensors"}, "no such file; give the path of a .safetensors file"),
        ({}, "model timm: option 'name' is missing"),
        ({"name": SMALL, "pretraind": True}, "no option 'pretraind'; did you mean 'pretrained'?"),
    ],
)
def test_bad_options_are_told_in_one_line_before_anything_is_built(vision, options, says):
    with pytest.raises(UserError) as caught:
        check_model("timm", options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_weights_that_cannot_be_had(vision, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        network("test_resnet.r160_in1k", pretrained=True)
    assert "test_resnet.r160_in1k cannot get its weights (" in str(caught.value)
    assert str(caught.value).endswith("; give pretrained=FILE.safetensors where there is no network")


def test_images_that_it_cannot_read(vision):
    with pytest.raises(UserError, match=r"model timm: test_vit cannot read images of 3 × 8 × 8 \(Input height"):
        network("test_vit", input_shape=(3, 8, 8))
    with pytest.raises(UserError, match=r"model timm is for images, the data's inputs are \(12,\)"):
        network(input_shape=(12,))


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model timm: timm is not installed; pip install 'lighten\[vision\]'"):
        check_model("timm", {"name": SMALL})
