"""Language models of ``transformers``, planned as they are: with their caches, ties, key-value heads and experts."""

import copy
import warnings
from functools import lru_cache

import pytest
import torch
import transformers as hf

from lighten import mask_, plan_pruning, shrink
from lighten.pruning import Plan

WORDS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
SIZES = {
    **WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
ROTARY = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "eos_token_id": None}
BOTH = {
    "d_model": 32, "decoder_start_token_id": 2, "forced_eos_token_id": None, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
FAMILIES = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**ROTARY)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**ROTARY, head_dim=8)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**ROTARY)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, max_position_embeddings=32)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SIZES, alibi=False)),
    "grouped falcon": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**SIZES, alibi=False, num_kv_heads=2, new_decoder_architecture=True)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**ROTARY, head_dim=8)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**WORDS, **BOTH, max_position_embeddings=32)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **WORDS, **BOTH, num_mel_bins=8, max_source_positions=16, max_target_positions=32, suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**ROTARY, num_local_experts=4, num_experts_per_tok=2)
    ),
    "gpt-oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**ROTARY, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_scaling=None)
    ),
}  # fmt: skip
EXPERTS = ("mixtral", "gpt-oss")
"""Their products of groups run in float32 alone."""
SCALED = ("gemma2", "t5")
"""A scale of theirs follows the hidden width."""


def build(name):
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def example(name, batch=2):
    generator = torch.Generator().manual_seed(batch)
    draw = lambda length: torch.randint(3, 64, (batch, length), generator=generator)  # noqa: E731
    if name == "whisper":
        return {"input_features": torch.randn(batch, 8, 32, generator=generator), "decoder_input_ids": draw(5)}
    return {"input_ids": draw(9)} | ({"decoder_input_ids": draw(5)} if name in ("t5", "bart") else {})


@lru_cache
def halved(name):
    model = build(name)
    plan = plan_pruning(model, example(name), 0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if name in SCALED else "error", message=".*from_pretrained cannot read it")
        return model, plan, shrink(model, plan)


def typed(name, model):
    """In float64, where the family can."""
    return copy.deepcopy(model) if name in EXPERTS else copy.deepcopy(model).double()


def masked(model, plan):
    model = copy.deepcopy(model)
    mask_(model, plan)
    return model


@torch.no_grad()
def logits(name, model):
    kind = next(model.parameters()).dtype
    return model(**{k: v.to(kind) if v.is_floating_point() else v for k, v in example(name, batch=3).items()}).logits


@torch.no_grad()
def tokens(name, model, *, cached):
    kind = next(model.parameters()).dtype
    inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in example(name, batch=3).items()}
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cached).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_hidden_and_inner_widths_go_and_masked_equals_cut(name):
    model, plan, small = halved(name)
    assert plan.saved["macs"] > 0.68
    whole, cut = logits(name, typed(name, masked(model, plan))), logits(name, typed(name, small))
    assert float((whole - cut).abs().max()) < (1e-4 if name in EXPERTS else 1e-8)
    assert float((whole - logits(name, typed(name, model))).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_generates_the_same_tokens_with_and_without_its_cache(name):
    model, plan, small = halved(name)
    small = typed(name, small)
    found = tokens(name, small, cached=True)
    assert found == tokens(name, small, cached=False)
    assert found == tokens(name, typed(name, masked(model, plan)), cached=True)
    assert len({token for row in found for token in row}) > 4


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in SCALED])
def test_comes_back_by_from_pretrained(name, tmp_path):
    _, _, small = halved(name)
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(name, again), logits(name, small))
    assert tokens(name, again, cached=True) == tokens(name, small, cached=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_ties_are_one_parameter(name):
    def ties(model):
        found = {}
        for key, parameter in model.named_parameters(remove_duplicate=False):
            found.setdefault(id(parameter), []).append(key)
        return sorted(keys for keys in found.values() if len(keys) > 1)

    model, _, small = halved(name)
    assert ties(small) == ties(model)


@pytest.mark.filterwarnings("ignore:T5Config cannot say")
def test_what_no_config_can_say_is_named_and_rebuilt_from_the_plan():
    model = build("t5")
    plan = plan_pruning(model, example("t5"), 0.5)
    with pytest.warns(UserWarning, match="T5Config cannot say .* without changing a scale too, .*exclude the embedd"):
        small = shrink(model, plan)
    again = shrink(build("t5"), Plan.from_json(plan.to_json()))
    again.load_state_dict(small.state_dict())
    assert torch.equal(logits("t5", again), logits("t5", small))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*from_pretrained cannot read it")
        small = shrink(model, plan_pruning(model, example("t5"), 0.5, exclude=["shared"]))
    assert (small.config.num_heads, small.config.d_ff, small.config.d_model) == (2, 24, 32)


def test_modules_hold_the_config_that_is_saved():
    """Phi-3's attention counts its heads by its config."""
    _, plan, small = halved("phi3")
    assert any(name.endswith("self_attn.config.num_attention_heads") for name in plan.attributes)
    said = small.config.to_dict()
    assert (said["num_attention_heads"], said["num_key_value_heads"], said["hidden_size"]) == (2, 1, 16)
    held = [module.config for module in small.modules() if hasattr(module, "config")]
    assert len(held) > 4
    assert all(config.to_dict() == said for config in held)
    kept = ("max_position_embeddings", "num_hidden_layers", "vocab_size")
    assert all(said[key] == halved("phi3")[0].config.to_dict()[key] for key in kept)


def test_modules_remember_the_widths_that_their_config_says():
    _, _, small = halved("falcon")
    assert {module.num_heads for module in small.modules() if hasattr(module, "num_heads")} == {2}
    assert {module.hidden_size for module in small.modules() if hasattr(module, "hidden_size")} == {16}


def test_one_scope_where_each_layer_must_lose_as_much():
    model = build("llama")
    plan = plan_pruning(model, example("llama"), 0.4, scope="global")
    assert len({after for name, (_, after) in plan.widths.items() if name.endswith("gate_proj")}) > 1
    with pytest.warns(UserWarning, match=r'LlamaConfig cannot say .*or plan with scope="uniform", whose widths it can'):
        shrink(model, plan)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_lose_the_same_inner_width_and_stay(name):
    _, plan, small = halved(name)
    experts = small.model.layers[0].mlp.experts
    assert sorted(experts.gate_up_proj.shape) == [4, 16, 48]
    assert sorted(experts.down_proj.shape) == [4, 16, 24]
    router = next(why for layer, why in plan.frozen.items() if layer.endswith(("mlp.gate", "mlp.router")))
    assert router.startswith(("softmax mixes its channels", "goes through topk"))
    odd = plan_pruning(build(name), example(name), 0.4)
    assert {after for layer, (_, after) in odd.widths.items() if layer.endswith("gate_up_proj")} == {64}  # of 96, by 8


def test_heads_with_biases_of_their_own_stay():
    model = hf.BloomForCausalLM(hf.BloomConfig(**WORDS, hidden_size=32, n_layer=1, n_head=4)).eval()
    plan = plan_pruning(model, example("bloom"), 0.5)
    assert plan.widths["transformer.h.0.self_attention.query_key_value"] == (96, 96)
    assert "num_heads" in plan.frozen["transformer.h.0.self_attention.query_key_value"]
    assert plan.widths["transformer.word_embeddings"] == (32, 16)


def test_one_key_and_value_head_stays_and_query_heads_go():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**ROTARY, "num_key_value_heads": 1})).eval()
    plan = plan_pruning(model, example("llama"), 0.5)
    assert plan.widths["model.layers.0.self_attn.q_proj"] == (32, 16)
    assert plan.widths["model.layers.0.self_attn.k_proj"] == (8, 8)
    assert plan.frozen["model.layers.0.self_attn.v_proj"].startswith("is shared by all heads")
    small = shrink(model, plan)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
