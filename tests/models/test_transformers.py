import json
import logging

import pytest
import torch
from torch import nn

import lighten
from lighten.errors import UserError
from lighten.models import build_model, check_model
from lighten.utils.compression import record_of

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

    spec = json.loads(json.dumps(record_of(loaded).spec))
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


BERT = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 12,
}  # fmt: skip
ROBERTA = BERT | {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 14}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 40, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
WORDS = {
    "input_ids": torch.tensor([[2, 5, 7, 3, 1], [2, 9, 3, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
}


def text(num_classes=5, **options):
    return build_model("transformers", num_classes=num_classes, input_shape=(10,), **options)


def logits(model):
    with torch.no_grad():
        return model.eval()(**WORDS).logits


@pytest.mark.parametrize("config", [BERT, ROBERTA, DISTILBERT], ids=["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("head", "classes", "shape"), [("classification", 5, (2, 5)), ("masked_lm", 40, (2, 5, 40))])
def test_text_models_come_from_a_config_and_a_head(config, head, classes, shape):
    model = text(classes, config=config, head=head)
    assert logits(model).shape == shape
    assert model.dtype == torch.float32
    assert model.config.model_type == config["model_type"]


def test_a_masked_lm_takes_its_vocabulary_from_the_data():
    config = {k: v for k, v in BERT.items() if k != "vocab_size"}
    assert text(33, config=config, head="masked_lm").config.vocab_size == 33


def test_dropout_is_the_configs():
    model = text(config=BERT | {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.4})
    assert model.bert.embeddings.dropout.p == 0.3
    assert model.dropout.p == 0.4


@pytest.mark.parametrize(("head", "classes"), [("classification", 5), ("masked_lm", 40)])
def test_text_from_a_path_needs_it_no_more(tmp_path, head, classes):
    model = text(classes, config=BERT, head=head)
    model.save_pretrained(tmp_path)
    loaded = text(classes, path=str(tmp_path), head=head)
    assert torch.equal(logits(loaded), logits(model))

    spec = json.loads(json.dumps(record_of(loaded).spec))
    assert set(spec["options"]) == {"config", "head"}
    again = build_model(spec["name"], num_classes=classes, input_shape=spec["input_shape"], **spec["options"])
    again.load_state_dict(loaded.state_dict())
    assert torch.equal(logits(again), logits(model))


@pytest.fixture
def loud():
    """Let transformers say all it has to say, and return what it does."""
    from transformers.utils import logging as hf_logging

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    hf_logging.add_handler(handler)
    yield said
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == (logging.WARNING, True)
    hf_logging.remove_handler(handler)
    hf_logging.set_verbosity(before[0])
    if not before[1]:
        hf_logging.disable_progress_bar()


def test_an_encoder_gets_a_fresh_head_without_a_word(tmp_path, capfd, loud):
    encoder = text(40, config=BERT, head="masked_lm")
    encoder.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = text(3, path=str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert loud == []
    assert logits(loaded).shape == (2, 3)
    theirs = encoder.bert.state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in loaded.bert.state_dict().items() if "pooler" not in k)


def test_minilm_by_name():
    model = build_model("transformers", num_classes=4, input_shape=(24,), path="minilm")
    assert (type(model).__name__, model.config.num_hidden_layers) == ("BertForSequenceClassification", 6)
    # weights, not a fresh draw: a trained layer norm is not all ones
    assert not torch.equal(model.bert.encoder.layer[0].output.LayerNorm.weight, torch.ones(384))
    assert "minilm" not in json.dumps({k: v for k, v in record_of(model).spec["options"].items() if k != "config"})


def test_no_pickle_is_read(tmp_path):
    model = text(config=BERT)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"cannot be loaded; expected a folder with config\.json and model\.safetensors"
    ):
        text(path=str(tmp_path))


def test_a_folder_without_the_encoders_weights_is_refused(tmp_path):
    text(config=BERT).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks 16 weights of BertForSequenceClassification's encoder, such as bert\."):
        text(path=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": BERT, "head": "masked_ml"}, "head='masked_ml'; did you mean 'masked_lm'?"),
        ({"config": BERT, "head": "masked_lm"}, "has a vocabulary of 40 tokens, the data has 3;"),
        ({"config": BERT | {"model_type": "bart_"}}, "did you mean 'bart'?"),
        ({"config": BERT | {"model_type": "resnet"}}, "config.model_type='resnet'"),
        ({"config": BERT | {"max_position_embeddings": 9}}, "reads 9 tokens at most, the data has 10;"),
        ({"config": ROBERTA | {"max_position_embeddings": 11}}, "reads 9 tokens at most, the data has 10;"),
        ({"config": BERT | {"num_attention_heads": 3}}, "config of 'bert' cannot be built"),
        ({"path": "/nonexistent/model"}, "path='/nonexistent/model' cannot be loaded"),
        ({"path": "https://example.org/model"}, "is a URL"),
    ],
)
def test_bad_options_of_text_models_are_told_in_one_line(options, says):
    with pytest.raises(UserError) as caught:
        text(3, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"attn_implementation": "someone/kernel"}, "config.attn_implementation='someone/kernel' names code"),
        ({"attn_implementation": {"": "someone/kernel@main:f"}}, "config.attn_implementation='someone/kernel@main:f'"),
        ({"experts_implementation": "someone/kernel"}, "config.experts_implementation='someone/kernel' names code"),
        ({"quantization_config": {"quant_method": "awq"}}, "expected weights in floating point"),
    ],
)
def test_a_config_that_asks_for_more_than_a_shape(tmp_path, entry, says):
    """``transformers`` fetches and runs a kernel of the hub where the package ``kernels`` is installed."""
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2} | entry
    (tmp_path / "config.json").write_text(json.dumps(config))
    for options in ({"path": str(tmp_path)}, {"config": config}):
        with pytest.raises(UserError) as caught:
            build_model("transformers", num_classes=2, input_shape=(16,), **options)
        assert says in str(caught.value)


SEGFORMER = {
    "model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16],
    "decoder_hidden_size": 16, "num_attention_heads": [1, 2], "sr_ratios": [2, 1], "patch_sizes": [7, 3],
    "strides": [4, 2], "mlp_ratios": [2, 2],
}  # fmt: skip
MOBILEVIT = {"model_type": "mobilevit", "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]}


def network(num_classes, input_shape, **options):
    torch.manual_seed(0)
    return build_model("transformers", num_classes=num_classes, input_shape=input_shape, **options).eval()


def rebuilt(model):
    """The same again, of what the record says, as JSON."""
    spec = json.loads(json.dumps(record_of(model).spec))
    again = build_model(
        spec["name"], num_classes=spec["num_classes"], input_shape=spec["input_shape"], **spec["options"]
    )
    again.load_state_dict(model.state_dict())
    return again.eval()


@pytest.mark.parametrize("config", [SEGFORMER, MOBILEVIT], ids=["segformer", "mobilevit"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 96)])
def test_a_mask_has_the_size_of_the_image(config, shape):
    import transformers

    model = network(11, shape, config=config, head="segmentation")
    x = torch.randn(2, *shape)
    found = model(x)
    assert found.shape == (2, 11, *shape[1:])
    torch.manual_seed(0)
    options = {key: value for key, value in config.items() if key != "model_type"}
    theirs = transformers.AutoModelForSemanticSegmentation.from_config(
        transformers.AutoConfig.for_model(config["model_type"], num_labels=11, num_channels=shape[0], **options)
    ).eval()
    coarse = theirs(x).logits
    torch.testing.assert_close(found, nn.Upsample(shape[1:], mode="bilinear", align_corners=False)(coarse))
    assert torch.equal(rebuilt(model)(x), found)


def test_masks_from_a_path_keep_its_weights(tmp_path):
    model = network(4, (3, 32, 32), config=SEGFORMER, head="segmentation")
    model.network.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(4, (3, 32, 32), path=str(tmp_path), head="segmentation")(x), model(x))
    other = network(7, (3, 32, 32), path=str(tmp_path), head="segmentation")
    assert other(x).shape == (2, 7, 32, 32)
    body = {key: value for key, value in other.state_dict().items() if "classifier" not in key}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in body.items())


def test_a_network_for_masks_is_pruned_exactly_saved_and_loaded(tmp_path):
    model, x = network(4, (1, 32, 32), config=SEGFORMER, head="segmentation"), torch.randn(2, 1, 32, 32)
    plan = lighten.plan_pruning(model, x, 0.5)
    with pytest.warns(UserWarning, match=r"save it with lighten\.save"):
        small = lighten.shrink(model, plan).eval()
    lighten.mask_(model, plan)
    loaded = lighten.load(lighten.save(small, tmp_path / "small"))
    assert torch.equal(loaded(x), small(x))
    torch.testing.assert_close(small.double()(x.double()), model.double()(x.double()), rtol=0, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", [BERT, ROBERTA, DISTILBERT], ids=["bert", "roberta", "distilbert"])
def test_each_token_has_a_class(config):
    model = text(7, config=config, head="token_classification")
    assert logits(model).shape == (2, 5, 7)
    assert torch.equal(logits(rebuilt(model)), logits(model))


@pytest.mark.parametrize("config", [BERT, DISTILBERT], ids=["bert", "distilbert"])
def test_numbers_from_text(tmp_path, config):
    model = text(2, config=config, head="regression")
    assert logits(model).shape == (2, 2)
    # what transformers' own loss makes of labels is the mean of squares
    labels = torch.randn(2, 2)
    loss = model(**WORDS, labels=labels).loss
    torch.testing.assert_close(loss, (logits(model) - labels).square().mean())
    assert rebuilt(model).config.problem_type == "regression"
    model.save_pretrained(tmp_path)
    loaded = text(3, path=str(tmp_path), head="regression")
    assert logits(loaded).shape == (2, 3)
    assert loaded.config.problem_type == "regression"


def test_numbers_from_images():
    model = network(1, (1, 8, 8), config=VIT, head="regression")
    assert model(torch.randn(2, 1, 8, 8)).logits.shape == (2, 1)
    assert model.config.problem_type == "regression"
    assert rebuilt(model).config.problem_type == "regression"


def test_what_is_recorded_of_classifiers_of_images_is_as_before():
    assert set(record_of(network(3, (1, 8, 8), config=VIT)).spec["options"]) == {"config"}


def test_heads_of_images_are_not_for_text():
    with pytest.raises(UserError, match=r"head='segmentation' is for images, the data's inputs are \(10,\)"):
        text(config=BERT, head="segmentation")


@pytest.mark.parametrize("head", ["masked_lm", "token_classification"])
def test_heads_of_texts_are_not_for_images(head):
    with pytest.raises(UserError, match=rf"head='{head}' is for text, the data's inputs are \(1, 8, 8\)"):
        network(5, (1, 8, 8), config=VIT, head=head)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either path or config"),
        ({"path": "x", "config": VIT}, "give either path or config"),
        ({"config": VIT, "head": "segmentatoin"}, "head='segmentatoin'; did you mean 'segmentation'?"),
    ],
)
def test_options_are_checked_without_data(options, says):
    with pytest.raises(UserError) as caught:
        check_model("transformers", options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
