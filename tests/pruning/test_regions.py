"""Norms written by hand: the widths that they normalise go, cut equals masked, and what is no norm is left alone."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from norm_nets import Bare, First, Response, Rms
from pruning_nets import Net, assert_right, groups_of, net
from torch import nn

from lighten.pruning import Plan, mask_, plan_pruning, shrink

x = torch.rand(2, 5, 8)
image = torch.rand(2, 3, 6, 6)


def last(norm, width=6):
    return Net(
        lambda s, x: s.head(F.gelu(s.norm(s.a(x)))), a=nn.Linear(8, width), norm=norm, head=nn.Linear(width, 2)
    ).eval()


def second(norm, width=6):
    return Net(
        lambda s, x: s.head(F.gelu(s.norm(s.a(x)))), a=nn.Conv2d(3, width, 3), norm=norm, head=nn.Conv2d(width, 2, 1)
    ).eval()


class OfHand(nn.Module):
    """A norm as its forward says; parameters and attributes as given."""

    def __init__(self, body, **own):
        super().__init__()
        self.body = body
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)

    def forward(self, *args):
        return self.body(self, *args)


@pytest.mark.parametrize("norm", [Rms(), Rms(one=1.0), Rms(by_width=True), Bare(), nn.Softmax(-1)], ids=repr)
def test_a_norm_over_the_last_dimension(norm):
    assert assert_right(last(norm), x).widths["a"] == (6, 3)


@pytest.mark.parametrize("norm", [First(), nn.GroupNorm(1, 6, affine=False)], ids=repr)
def test_a_norm_over_the_second_dimension(norm):
    assert assert_right(second(norm), image).widths["a"] == (6, 3)


def test_a_response_norm_over_places_then_channels():
    def body(s, x):
        return s.head(s.norm(s.a(x).permute(0, 2, 3, 1)))

    model = Net(body, a=nn.Conv2d(3, 6, 3), norm=Response(), head=nn.Linear(6, 2)).eval()
    nn.init.uniform_(model.norm.weight)
    nn.init.uniform_(model.norm.bias)
    assert assert_right(model, torch.rand(2, 3, 8, 8)).widths["a"] == (6, 3)  # 6 channels on 6 rows


def test_a_gated_norm_takes_two():
    norm = OfHand(
        lambda s, x, gate: F.rms_norm(x * F.silu(gate), s.weight.shape) * s.weight, weight=torch.rand(6) + 0.5
    )
    model = Net(
        lambda s, x: s.head(s.norm(s.a(x), s.b(x))), a=nn.Linear(8, 6), b=nn.Linear(8, 6), norm=norm,
        head=nn.Linear(6, 2),
    ).eval()  # fmt: skip
    assert assert_right(model, x).groups[0].layers == ("a", "b")


def test_roles_say_what_scales_and_what_is_added():
    norm = OfHand(
        lambda s, x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-5).sqrt() * s.scale + s.offset,
        scale=torch.rand(6, 1, 1), offset=torch.rand(6, 1, 1),
    )  # fmt: skip
    for made, roles in ((norm, {"scale": "norm", "offset": "shift"}), (Rms(), {"weight": "norm"})):
        model, example = (second(made), image) if made is norm else (last(made), x)
        slots = [slot for cut in plan_pruning(model, example, 0.5).cuts for slot in cut.slots]
        assert {s.tensor: s.role for s in slots if s.tensor.startswith("norm.")} == {
            f"norm.{k}": v for k, v in roles.items()
        }
        assert [(s.tensor, s.dim) for s in slots if s.role == "live"] == [("norm", 1 if made is norm else -1)]


def test_a_weight_beside_a_one_is_no_scale():
    slots = [slot for cut in plan_pruning(last(Rms(one=1.0)), x, 0.5).cuts for slot in cut.slots]
    assert [slot.role for slot in slots if slot.tensor == "norm.weight"] == ["shift"]


def test_a_norm_of_several_calls_ties_what_they_take():
    def body(s, x):
        return s.head(s.norm(s.b(s.norm(s.a(x)))))

    model = Net(body, a=nn.Linear(8, 6), b=nn.Linear(6, 6), norm=Bare(), head=nn.Linear(6, 2)).eval()
    assert assert_right(model, x).groups[0].layers == ("a", "b")


def test_a_token_of_its_own_beside_others_is_a_place_not_a_channel():
    def body(s, x):
        return s.head(s.norm(torch.cat([s.token.weight.expand(len(x), 1, -1), s.a(x)], 1)))

    model = Net(body, a=nn.Linear(8, 6), token=nn.Embedding(1, 6), norm=Rms(), head=nn.Linear(6, 2)).eval()
    assert assert_right(model, x).widths["a"] == (6, 3)


@pytest.mark.parametrize("norm", [Rms(), nn.LayerNorm(6)], ids=["by hand", "layer norm"])
def test_a_norm_within_heads_leaves_the_heads_free(norm):
    def body(s, x):
        q, k, v = (f(x).unflatten(-1, (-1, 6)) for f in (s.q, s.k, s.v))
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (s.norm(q), s.norm(k), v)))
        return s.head(y.transpose(1, 2).flatten(2))

    model = Net(
        body, q=nn.Linear(8, 24), k=nn.Linear(8, 24), v=nn.Linear(8, 24), norm=norm, head=nn.Linear(24, 2)
    ).eval()  # fmt: skip
    (row,) = assert_right(model, x).groups
    assert (row.layers, row.width_before, row.width_after) == (("q", "k", "v"), 4, 2)


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (OfHand(lambda s, x: F.softmax(x, -1).flip(-1)), "softmax mixes"),
        (OfHand(lambda s, x: x.cumsum(-1)), "cumsum mixes"),
        (OfHand(lambda s, x: x - x.mean(-1, True) * torch.linspace(0, 1, 6)), "mean mixes"),
        (OfHand(lambda s, x: x / (x.roll(1, -1) + x).std(-1, keepdim=True) * s.w[None], w=torch.rand(1, 6)), ""),
        (nn.Sequential(nn.Identity(), OfHand(lambda s, x: x - x.mean())), ""),
    ],
    ids=["turned round", "in order", "with numbers of its own", "neighbours", "over everything"],
)
def test_what_is_no_norm_of_channels_is_left_alone_or_right(norm, why):
    found, frozen = groups_of(last(norm), x)
    if why:
        assert re.match(why, frozen["a"])
        assert not found
    elif found:
        assert_right(last(norm), x)


def test_a_norm_that_is_called_otherwise_too_is_left_alone():
    norm = OfHand(lambda s, x: x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6))
    model = net(
        lambda s, x: s.head(s.norm(s.a(s.norm(x)))), a=nn.Linear(8, 6), norm=norm, head=nn.Linear(6, 2)
    )  # fmt: skip
    found, frozen = groups_of(model, x)
    assert not found
    assert frozen["a"] == "goes through norm, which is also called otherwise"


def test_a_norm_within_a_larger_module_is_left_alone_by_name():
    def body(s, x):
        y = s.a(x)
        return s.head(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))

    _, frozen = groups_of(net(body, a=nn.Linear(8, 6), head=nn.Linear(6, 2)), x)
    assert frozen["a"].startswith("mean mixes its channels")


def test_the_plan_says_it_all_and_the_cut_network_is_cut_again():
    model = last(Rms(by_width=True), width=12)
    model.norm = Rms(by_width=True)
    model.norm.weight, model.norm.dim = nn.Parameter(torch.rand(12) + 0.5), 12
    plan = plan_pruning(model, x, 0.5)
    assert Plan.from_json(plan.to_json()) == plan
    small = shrink(model, plan)
    assert (small.norm.dim, small.norm.weight.shape) == (6, (6,))
    assert type(small.norm) is Rms
    again = shrink(small, plan_pruning(small, x, 0.5, of="present"))
    assert again.norm.dim == 3


def logits(network):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, **inputs):
            return self.network(**inputs).logits

    return Logits()


def tiny(name):
    import transformers as t

    ids = {"input_ids": torch.randint(3, 50, (2, 7))}
    rest = {"vocab_size": 50, "num_hidden_layers": 1, "hidden_size": 16, "use_cache": False}
    heads = {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    if name == "gemma":
        return t.GemmaForSequenceClassification(t.GemmaConfig(pad_token_id=0, **rest, **heads)), ids
    if name == "qwen3":
        return t.Qwen3ForSequenceClassification(t.Qwen3Config(pad_token_id=0, **rest, **heads)), ids
    if name == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(state_size=4, **rest)), ids
    if name == "t5":
        config = t.T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0, use_cache=False,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        return t.T5ForConditionalGeneration(config), {**ids, "decoder_input_ids": ids["input_ids"]}
    config = t.ConvNextV2Config(
        hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4, image_size=16, num_labels=3
    )
    return t.ConvNextV2ForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


HIDDEN = {
    "gemma": "model.embed_tokens", "qwen3": "model.embed_tokens", "mamba": "backbone.embeddings",
    "t5": "decoder.block.0.layer.2.DenseReluDense.wo", "convnextv2": "convnextv2.embeddings.patch_embeddings",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*from_pretrained cannot read it")
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_widths_of_other_peoples_networks_go(name):
    torch.manual_seed(0)
    network, inputs = tiny(name)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    network = logits(network).eval()
    plan = plan_pruning(network, inputs, 0.5)
    before, after = plan.widths[f"network.{HIDDEN[name]}"]
    assert after == before // 2
    small = shrink(network, plan).double().train()
    masked = copy.deepcopy(network)
    mask_(masked, plan)
    masked = masked.double().train()
    cast = {k: v.double() if v.is_floating_point() else v.flip(0) for k, v in inputs.items()}
    ours, theirs = masked(**cast), small(**cast)
    assert (ours - theirs).abs().max() <= 1e-8 * ours.abs().max()
    ours.pow(2).mean().backward()
    theirs.pow(2).mean().backward()
    learnt = dict(small.named_parameters())
    kept_of = {}
    for cut in plan.cuts:
        for slot in cut.slots:
            kept_of.setdefault(slot.tensor, []).append((slot.dim, [i for i in range(cut.size) if i not in cut.removed]))
    for tensor, parameter in masked.named_parameters():
        if (gradient := parameter.grad) is not None:
            for dim, kept in kept_of.get(tensor, []):
                gradient = gradient.index_select(dim, torch.tensor(kept))
            assert torch.allclose(gradient, learnt[tensor].grad, rtol=1e-7, atol=1e-10)
