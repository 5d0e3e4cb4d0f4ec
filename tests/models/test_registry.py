import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import nn

import lighten.utils.registry
from lighten.errors import UserError
from lighten.models import build_model, check_model, model_names, register_model
from lighten.models.registry import _REGISTRY, checked_shape
from lighten.utils.compression import record_of


@pytest.fixture
def _restore():
    before = dict(_REGISTRY._builders)
    yield
    _REGISTRY._builders.clear()
    _REGISTRY._builders.update(before)


def test_names_hold_all_families():
    resnets = {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"}
    assert resnets | {"cnn", "mlp", "transformers"} <= set(model_names())


def test_spec_is_json_and_rebuilds_the_same_architecture():
    model = build_model("cnn", num_classes=7, input_shape=(2, 12, 12), widths=[3, 5])
    spec = json.loads(json.dumps(record_of(model).spec))
    assert spec["options"] == {"widths": [3, 5], "depth": 1}
    again = build_model(
        spec["name"],
        num_classes=spec["num_classes"],
        input_shape=tuple(spec["input_shape"]),
        **spec["options"],
    )
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 12, 12)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("name", ["resnet20", "cnn", "mlp"])
def test_weights_depend_on_torch_seed_alone(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat(
            [p.detach().flatten() for p in build_model(name, num_classes=3, input_shape=(1, 8, 8)).parameters()]
        )

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert weights(1).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet_20", {}, "model 'resnet_20' is unknown; did you mean 'resnet20'?"),
        ("resnet20", {"widht": 8}, "model resnet20: no option 'widht'; did you mean 'width'?"),
        ("resnet20", {"width": 0}, "model resnet20: width=0, expected an integer of at least 1"),
        ("resnet20", {"width": "16"}, "width='16'"),
        ("resnet20", {"shortcut": "convv"}, "did you mean 'conv'?"),
        ("resnet20", {"stem_stride": 3}, "stem_stride=3, expected 1 or 2"),
        ("resnet20", {"blocks": -1}, "blocks=-1"),
        ("resnet20", {"num_classes": 3}, "no option 'num_classes'"),
        ("cnn", {"widths": []}, "widths=[]"),
        ("cnn", {"widths": [4] * 9}, "fewer widths"),
        ("mlp", {"hidden": 64}, "hidden=64"),
        ("mlp", {"hidden": [1 << 40]}, "model mlp: hidden[0]=1099511627776, expected at most 65536"),
        ("mlp", {"hidden": [1] * 1001}, "hidden has 1001 entries, expected at most 1000"),
        ("mlp", {"batch_norm": "no"}, "model mlp: batch_norm='no': expected true or false"),
        ("resnet20", {"blocks": 1001}, "model resnet20: blocks=1001, expected at most 1000"),
        ("cnn", {"depth": 10**9}, "model cnn: depth=1000000000, expected at most 1000"),
        ("transformers", {"path": ["a"]}, "model transformers: path=['a']: expected text or null"),
    ],
)
def test_bad_options_are_told_in_one_line(name, options, says):
    with pytest.raises(UserError) as caught:
        check_model(name, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_touches_no_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_model("resnet20", {"width": 4})
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.usefixtures("_restore")
def test_registered_model_is_built_by_name():
    @register_model("tiny")
    def tiny(*, num_classes, input_shape, hidden=8, depth):
        return nn.Linear(hidden * depth, num_classes)

    assert "tiny" in model_names()
    model = build_model("tiny", num_classes=2, input_shape=(1, 4, 4), depth=3)
    assert model.in_features == 24
    assert record_of(model).spec["options"] == {"hidden": 8, "depth": 3}
    with pytest.raises(UserError, match="option 'depth' is missing"):
        build_model("tiny", num_classes=2, input_shape=(1, 4, 4))


@pytest.mark.usefixtures("_restore")
def test_a_taken_name_is_refused():
    with pytest.raises(UserError, match=r"'resnet20' is taken by lighten\.models\.resnet"):
        register_model("resnet20")(lambda **_: None)


@pytest.mark.usefixtures("_restore")
def test_installed_packages_announce_models(monkeypatch):
    entry = EntryPoint("theirs", "torch.nn:Identity", "lighten.models")
    monkeypatch.setattr(lighten.utils.registry, "entry_points", lambda **k: EntryPoints([entry]).select(**k))
    assert "theirs" in model_names()
    assert isinstance(build_model("theirs", num_classes=2, input_shape=(1, 2, 2)), nn.Identity)


def test_shapes_of_files_are_checked():
    assert checked_shape("x", [3, 32, 32]) == (3, 32, 32)
    table = {"numbers": 0, "categories": [3, 5]}
    assert checked_shape("x", table) == table
    for shape, says in (
        ([3, -1], "model x: input_shape=-1, expected an integer of at least 1"),
        ([3, 1 << 40], "expected at most 65536"),
        ({"numbers": 1}, "model x: input_shape={'numbers': 1}, expected numbers and categories"),
        ({"numbers": "a", "categories": []}, "model x: input_shape='a', expected an integer of at least 0"),
        ({"numbers": 1, "categories": [0]}, "model x: input_shape=0, expected an integer of at least 1"),
    ):
        with pytest.raises(UserError) as caught:
            checked_shape("x", shape)
        assert says in str(caught.value)
