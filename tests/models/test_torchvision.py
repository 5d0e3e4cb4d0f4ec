import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import lighten
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.utils.compression import record_of

MASKS = "lraspp_mobilenet_v3_large"


def network(name="squeezenet1_1", num_classes=5, input_shape=(3, 32, 32), **options):
    torch.manual_seed(0)
    return build_model("torchvision", num_classes=num_classes, input_shape=input_shape, name=name, **options).eval()


@pytest.fixture
def weights(vision, tmp_path):
    """A file of weights for 1,000 classes, and the network that they come from."""
    import torchvision

    torch.manual_seed(7)
    model = torchvision.models.shufflenet_v2_x0_5().eval()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return {"name": "shufflenet_v2_x0_5", "pretrained": str(path)}, model


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_it_is_the_librarys_own_network(vision, name):
    import torchvision

    found = network(name, input_shape=(3, 64, 64))
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    expected = torchvision.models.get_model(name, num_classes=5, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found(x), expected(x))
    assert found.train()(x).shape == (2, 5)


@pytest.mark.parametrize("name", [MASKS, "deeplabv3_mobilenet_v3_large"])
def test_networks_for_masks_answer_with_a_tensor(vision, name):
    import torchvision

    found = network(name, 11, (3, 64, 32))
    torch.manual_seed(0)
    expected = torchvision.models.get_model(name, num_classes=11, weights_backbone=None).eval()
    x = torch.randn(2, 3, 64, 32)
    assert torch.equal(found(x), expected(x)["out"])
    assert found(x).shape == (2, 11, 64, 32)


def test_a_file_gives_all_its_weights(weights):
    options, theirs = weights
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(num_classes=1000, **options)(x), theirs(x))


def test_another_count_of_classes_gets_a_fresh_head(weights):
    options, theirs = weights
    model = network(num_classes=7, **options)
    body = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in body.items())
    assert model.fc.weight.shape == (7, 1024)
    assert model.fc.weight.std() > 0


def test_grey_images_are_read_as_three_equal_colours(weights):
    options, theirs = weights
    x = torch.randn(2, 1, 32, 32)
    found = network(input_shape=(1, 32, 32), **options).conv1(x)
    torch.testing.assert_close(found, theirs.conv1(x.expand(2, 3, 32, 32)), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="the weights are for 3 channels or 1, the data has 4"):
        network(input_shape=(4, 32, 32), **options)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_fresh_network_reads_any_channels_with_as_large_answers(vision, channels):
    model, usual = network(input_shape=(channels, 32, 32)), network()
    spread = [
        net.features[0](torch.randn(64, size, 32, 32)).std().item() for net, size in ((model, channels), (usual, 3))
    ]
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 5)
    assert spread[0] / spread[1] == pytest.approx(1, abs=0.2)


def test_heads_that_help_to_train_are_left_out(vision, tmp_path):
    """As in the library's own files of weights for masks, and the old names in its files of DenseNets."""
    import torchvision

    torch.manual_seed(3)
    masks = torchvision.models.segmentation.fcn_resnet50(weights_backbone=None, aux_loss=True, num_classes=3).eval()
    save_file(masks.state_dict(), tmp_path / "masks.safetensors")
    found = network("fcn_resnet50", 3, (3, 32, 32), pretrained=str(tmp_path / "masks.safetensors"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(found(x), masks(x)["out"])

    dense = torchvision.models.densenet121(num_classes=3).eval()
    old = {
        ".".join(
            f"{part[:-1]}.{part[-1]}" if "denselayer" in key and part in ("norm1", "norm2", "conv1", "conv2") else part
            for part in key.split(".")
        ): value
        for key, value in dense.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(old, tmp_path / "dense.safetensors")
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = network("densenet121", 3, pretrained=str(tmp_path / "dense.safetensors"))
    assert torch.equal(found(x), dense(x))


@pytest.mark.parametrize("classes", [7, 1000])
@pytest.mark.parametrize("change", ["missing", "left over", "another shape"])
def test_a_file_of_other_weights_is_refused_whatever_the_head(weights, tmp_path, classes, change):
    options, theirs = weights
    state = theirs.state_dict()
    key = "stage2.0.branch1.2.weight"
    if change == "missing":
        del state[key]
    else:
        state["stage9.weight" if change == "left over" else key] = torch.zeros(3, 3)
    save_file(state, tmp_path / "other.safetensors")
    says = r"the weights do not fit in 1 places, such as (stage9\.weight|stage2\.0\.branch1\.2\.weight)"
    with pytest.raises(UserError, match=says):
        network(options["name"], classes, pretrained=str(tmp_path / "other.safetensors"))


def test_the_spec_needs_no_file(weights):
    options, _ = weights
    model = network(**options)
    spec = json.loads(json.dumps(record_of(model).spec))
    assert spec["options"] == {"name": options["name"], "pretrained": False}
    again = build_model(spec["name"], num_classes=5, input_shape=spec["input_shape"], **spec["options"])
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), model(x))


def test_a_network_for_masks_is_pruned_exactly(vision):
    model, x = network(MASKS, 4, (1, 64, 64)), torch.randn(2, 1, 64, 64)
    plan = lighten.plan_pruning(model, x, 0.5)
    small = lighten.shrink(model, plan).double()
    lighten.mask_(model, plan)
    torch.testing.assert_close(small(x.double()), model.double()(x.double()), rtol=0, atol=1e-9)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "resnet81"}, "model torchvision: name='resnet81' is unknown among "),
        ({"name": "resnet81"}, "did you mean 'resnet18'?"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "name='fasterrcnn_resnet50_fpn' is unknown"),
        ({"name": "resnet18", "pretrained": "w.pth"}, "expected true, false or a file that ends with .safetensors"),
        ({"name": "resnet18", "pretrained": "no.safetensors"}, "no such file; give the path of a .safetensors file"),
    ],
)
def test_bad_options_are_told_in_one_line_before_anything_is_built(vision, options, says):
    with pytest.raises(UserError) as caught:
        check_model("torchvision", options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_weights_that_cannot_be_had(vision, monkeypatch):
    def unreachable(*_, weights_only, **__):
        assert weights_only
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(UserError) as caught:
        network("resnet18", pretrained=True)
    assert str(caught.value) == (
        "model torchvision: resnet18 cannot get its weights (no route to host); "
        "give pretrained=FILE.safetensors where there is no network"
    )


def test_the_librarys_own_weights_come_with_its_head_for_as_many_classes(vision, monkeypatch):
    import torchvision

    theirs = torchvision.models.squeezenet1_1().eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(num_classes=1000, pretrained=True)(x), theirs(x))
    assert network(num_classes=4, pretrained=True)(x).shape == (2, 4)


def test_images_that_it_cannot_read(vision):
    with pytest.raises(UserError, match="vit_b_32 cannot read images of 3 × 32 × 64"):
        network("vit_b_32", input_shape=(3, 32, 64))


def test_the_package_is_named_where_it_is_missing_or_does_not_fit(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"torchvision is not installed; pip install 'lighten\[vision\]'"):
        check_model("torchvision", {"name": "resnet18"})

    def broken(_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("lighten.models.vision.importlib.import_module", broken)
    with pytest.raises(UserError, match=r"does not fit torch .* \(operator torchvision::nms does not exist\)"):
        check_model("torchvision", {"name": "resnet18"})
