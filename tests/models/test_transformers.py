import json
import logging

import pytest
import torch

from lighten.errors import UserError
from lighten.models import build_model
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


def test_heads_of_text_are_not_for_images():
    with pytest.raises(UserError, match=r"head='masked_lm' is for text, the data's inputs are \(1, 8, 8\)"):
        build_model("transformers", num_classes=5, input_shape=(1, 8, 8), config=VIT, head="masked_lm")


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
