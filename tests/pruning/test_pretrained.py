"""Models of ``transformers`` go through ``save_pretrained`` and ``from_pretrained`` after a cut."""

import warnings

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from zoo import ZOO

from lighten.pruning import plan_pruning, shrink
from lighten.utils.inputs import as_call

FOLLOW = ("resnet18", "resnet50", "convnext", "vit", "bert", "bert_lm", "distilbert", "roberta", "gpt2")


def cut(name, **settings):
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, inputs = build().eval(), example()
    return model, inputs, shrink(model, plan_pruning(model, inputs, 0.5, **settings))


def assert_comes_back(small, inputs, folder):
    small.save_pretrained(folder)
    again = type(small).from_pretrained(folder).eval()
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        assert torch.equal(again(*args, **kwargs).logits, small(*args, **kwargs).logits)


@pytest.mark.parametrize("name", FOLLOW)
def test_comes_back_with_equal_logits(name, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*from_pretrained cannot read it")
        model, inputs, small = cut(name)
    assert_comes_back(small, inputs, tmp_path)
    assert small.config is not model.config
    assert model.config.to_dict() != small.config.to_dict()


def test_heads_alone_where_the_config_has_a_word_for_them(tmp_path):
    _, inputs, small = cut("vit", exclude=["*patch*"])
    assert (small.config.num_attention_heads, small.config.head_dim, small.config.hidden_size) == (2, 8, 32)
    assert_comes_back(small, inputs, tmp_path)


def test_where_it_has_none_a_warning_says_so():
    with pytest.warns(UserWarning, match=r"BertConfig cannot say the widths of the cut model, so from_pretrained"):
        _, _, small = cut("bert", exclude=["*embeddings*"])
    assert small.config.num_attention_heads == 4


class Computed(BertConfig):
    """As Falcon's, which computes the width of a head."""

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    def __setattr__(self, key, value):
        if key == "num_attention_heads" and value == 1:
            raise ValueError("two heads at least")
        super().__setattr__(key, value)


def test_a_config_that_refuses_a_width_is_left_as_it_is():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(Computed(**size, vocab_size=20)).eval()
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    plan = plan_pruning(model, inputs, 0.5, exclude=["*embeddings*"])
    with pytest.warns(UserWarning, match="Computed cannot say the widths of the cut model"):
        small = shrink(model, plan)
    assert small.config.num_attention_heads == 2


def test_a_config_of_another_kind_is_nobodys_to_follow():
    class Hub(torch.nn.Sequential):
        def save_pretrained(self, folder):
            raise AssertionError

    model = Hub(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model.config = {"width": 8}
    small = shrink(model, plan_pruning(model, torch.randn(2, 4), 0.5))
    assert small[0].out_features == 4
    assert small.config == {"width": 8}


@pytest.mark.parametrize("name", ["gpt2", "bert_lm"])
def test_ties_stay_tied(name):
    _, _, small = cut(name)
    given, made = small.get_input_embeddings().weight, small.get_output_embeddings().weight
    assert given is made
    assert given.shape == (50, 16)


class Drawn(BertForSequenceClassification):
    """Draws on the CPU while it is built, wherever its weights go."""

    def __init__(self, config):
        super().__init__(config)
        self.order = torch.randperm(4, device="cpu").tolist()


def test_a_config_that_follows_draws_no_random_numbers():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = Drawn(BertConfig(**size, vocab_size=20)).eval()
    plan = plan_pruning(model, {"input_ids": torch.ones(2, 4, dtype=torch.int64)}, 0.5)
    before = torch.get_rng_state()
    shrink(model, plan)
    assert torch.equal(torch.get_rng_state(), before)
