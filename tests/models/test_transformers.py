import json

import pytest
import torch

from lighten.errors import UserError
from lighten.models import build_model

RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
VIT = {
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "patch_size": 4,
}  # fmt: skip


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_config_takes_the_shape_of_the_data(config):
    model = build_model("transformers", num_classes=5, input_shape=(1, 8, 8), config=config).eval()
    assert model(torch.randn(2, 1, 8, 8)).logits.shape == (2, 5)
    assert model.dtype == torch.float32


def test_path_keeps_weights_and_the_spec_needs_no_path(tmp_path):
    torch.manual_seed(0)
    model = build_model("transformers", num_classes=5, input_shape=(1, 8, 8), config=VIT).eval()
    model.save_pretrained(tmp_path)
    loaded = build_model("transformers", num_classes=5, input_shape=(1, 8, 8), path=str(tmp_path)).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x).logits, model(x).logits)

    spec = json.loads(json.dumps(loaded.lighten_spec))
    assert str(tmp_path) not in json.dumps({k: v for k, v in spec["options"].items() if k != "config"})
    again = build_model("transformers", num_classes=5, input_shape=(1, 8, 8), **spec["options"])
    again.load_state_dict(loaded.state_dict())
    assert torch.equal(again.eval()(x).logits, model(x).logits)


def test_another_class_count_gets_a_fresh_head_and_keeps_the_body(tmp_path):
    model = build_model("transformers", num_classes=5, input_shape=(1, 8, 8), config=VIT)
    model.save_pretrained(tmp_path)
    loaded = build_model("transformers", num_classes=3, input_shape=(1, 8, 8), path=str(tmp_path))
    assert loaded.classifier.weight.shape == (3, 8)
    body = {k: v for k, v in loaded.state_dict().items() if not k.startswith("classifier")}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in body.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either path or config"),
        ({"path": "x", "config": VIT}, "give either path or config"),
        ({"config": {"model_type": "vitt"}}, "did you mean 'vit'?"),
        ({"config": VIT | {"patch_size": 0}}, "config of 'vit' cannot be built"),
        ({"path": "/nonexistent/model"}, "path='/nonexistent/model' cannot be loaded"),
        ({"path": "https://example.org/model"}, "is a URL"),
    ],
)
def test_bad_options_are_told_in_one_line(options, says):
    with pytest.raises(UserError) as caught:
        build_model("transformers", num_classes=3, input_shape=(1, 8, 8), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_image_size_is_refused(tmp_path):
    build_model("transformers", num_classes=5, input_shape=(1, 8, 8), config=VIT).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was made for image_size=8, the data has 16"):
        build_model("transformers", num_classes=5, input_shape=(1, 16, 16), path=str(tmp_path))
