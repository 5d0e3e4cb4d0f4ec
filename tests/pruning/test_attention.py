"""PyTorch's attention modules lose heads and hidden widths; what replaces them computes the same."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import lighten
from lighten.models.registry import _REGISTRY
from lighten.pruning import mask_, plan_pruning, shrink
from lighten.pruning.attention import HeadAttention
from lighten.pruning.copies import Copies
from lighten.pruning.norms import restore_masks_
from lighten.quantization import calibrate_, quantize_
from lighten.quantization.activation_quantizers import quantizers_of
from lighten.quantization.install import unquantize_

WIDTH, HEADS = 16, 4
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def own_of(attention):
    own = copy.deepcopy(attention)
    own.__class__ = HeadAttention
    return own


def attention(**options):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def masks_for(batch, targets, sources):
    """Masks of every kind by name; no row is masked whole."""
    padding = torch.zeros(batch, sources, dtype=torch.bool)
    padding[0, -1] = True
    allowed = torch.zeros(targets, sources, dtype=torch.bool)
    allowed[0, 1] = True
    added, each = torch.randn(targets, sources).double(), torch.randn(batch * HEADS, targets, sources).double()
    causal = torch.ones(targets, sources, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": allowed},
        "float": {"attn_mask": added},
        "heads": {"attn_mask": each},
        "both": {"attn_mask": allowed, "key_padding_mask": padding},
        "both float": {"attn_mask": each, "key_padding_mask": padding.double() * -3},
        "causal": {"attn_mask": causal, "is_causal": True},
        "causal padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
    }


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


OPTIONS = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 10},
    {"kdim": 6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_it_computes_what_pytorch_does(options, batch_first):
    theirs = attention(batch_first=batch_first, **options).eval()
    own, (n, targets, sources) = own_of(theirs), (2, 5, 5)
    key, value = (torch.randn(n, sources, width).double() for width in (theirs.kdim, theirs.vdim))
    query = torch.randn(n, targets, WIDTH).double()
    calls = [(query, key, value)]
    if theirs._qkv_same_embed_dim:
        calls += [(query, query, query), (query, key, key)]
    for call, mask, (need, average) in itertools.product(
        calls, masks_for(n, targets, sources).values(), [(False, True), (True, True), (True, False)]
    ):
        turned = {id(x): x if batch_first else x.transpose(0, 1) for x in call}
        args = [turned[id(x)] for x in call]
        how = {**mask, "need_weights": need, "average_attn_weights": average}
        same(own(*args, **how), theirs(*args, **how))
        with torch.no_grad():  # PyTorch's fused kernel, where there is one
            same(own(*args, **how), theirs(*args, **how))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_takes_a_sample_without_a_batch(options):
    theirs = attention(**options)
    own, (targets, sources) = own_of(theirs), (3, 5)
    query, key, value = (
        torch.randn(size, width).double()
        for size, width in ((targets, WIDTH), (sources, theirs.kdim), (sources, theirs.vdim))
    )
    for need, each in itertools.product([False, True], [False, True]):
        how = {"need_weights": need, "attn_mask": torch.randn(*([HEADS] if each else []), targets, sources).double()}
        same(own(query, key, value, **how), theirs(query, key, value, **how))
    padding = torch.tensor([False] * 4 + [True])
    same(own(query, key, value, key_padding_mask=padding), theirs(query, key, value, key_padding_mask=padding))


@pytest.mark.parametrize("need_weights", [False, True])
def test_its_dropout_is_that_of_pytorch(need_weights):
    theirs = attention(dropout=0.4, batch_first=True).train()
    own, x = own_of(theirs), torch.randn(2, 5, WIDTH).double()
    results = []
    for module in (own, theirs):
        torch.manual_seed(3)
        results.append(module(x, x, x, need_weights=need_weights))
    same(*results)
    assert not torch.equal(results[0][0], own.eval()(x, x, x, need_weights=need_weights)[0])


def test_it_refuses_what_pytorch_refuses():
    own, x = own_of(attention(batch_first=True)), torch.randn(2, 5, WIDTH).double()
    with pytest.raises(RuntimeError, match="give the causal mask too"):
        own(x, x, x, is_causal=True)
    with pytest.raises(AssertionError, match="batched"):
        own(x, x[0], x[0])
    for mask in (torch.zeros(1, 5), torch.zeros(1, 5, 5), torch.zeros(2, 5, 5)):
        with pytest.raises(RuntimeError, match=r"attn_mask has shape .*, expected \(5, 5\) or \(8, 5, 5\)"):
            own(x, x, x, attn_mask=mask)
    with pytest.raises(RuntimeError, match="invalid for input of size 2"):
        own(x, x, x, key_padding_mask=torch.zeros(2, 1, dtype=torch.bool))


def test_it_runs_in_16_bits():
    theirs, x = attention(batch_first=True, add_bias_kv=True).float(), torch.randn(2, 5, WIDTH)
    own = own_of(theirs)
    for need in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            results = [module(x, x, x, PADDING, need_weights=need)[0] for module in (own, theirs)]
        assert results[0].dtype == results[1].dtype
        torch.testing.assert_close(*results, rtol=0.02, atol=0.02)


class Encoder(nn.Module):
    """Encoder layers between two linear ones."""

    def __init__(self, batch_first=True, norm_first=False, activation="gelu", dropout=0.0, layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 24, dropout, activation=activation, batch_first=batch_first, norm_first=norm_first
        )
        nested = batch_first and not norm_first
        self.start = nn.Linear(6, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=nested)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, padding=None):
        return self.head(self.encoder(self.start(x), src_key_padding_mask=padding))


class Decoder(nn.Module):
    """A decoder whose memory has its own way in."""

    def __init__(self, norm_first=True):
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, 0.0, batch_first=True, norm_first=norm_first)
        self.start, self.memory = nn.Linear(6, WIDTH), nn.Linear(5, WIDTH)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(WIDTH, 3)

    def forward(self, x, memory):
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        return self.head(self.decoder(self.start(x), self.memory(memory), tgt_mask=causal))


class Cross(nn.Module):
    """Attention to keys and values of other widths, with a key and value of its own, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.start, self.keys, self.values = nn.Linear(6, WIDTH), nn.Linear(5, 12), nn.Linear(5, 10)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=12, vdim=10, add_bias_kv=True, batch_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x, memory):
        x = self.start(x)
        out = self.attention(x, self.keys(memory).relu(), self.values(memory).relu())[0]
        return self.head(self.norm(x + out))


class Chain(nn.Module):
    """No residual sum: inputs and outputs of the attention have widths of their own."""

    def __init__(self):
        super().__init__()
        self.start, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        x = self.start(x).relu()
        return self.head(self.attention(x, x, x, need_weights=False)[0].relu())


class Whole(nn.Module):
    """``nn.Transformer`` between two embeddings and a head."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Linear(6, WIDTH), nn.Linear(5, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, 24, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, y):
        return self.head(self.transformer(self.source(x), self.target(y)))


def example(*widths):
    torch.manual_seed(1)
    return tuple(torch.randn(2, 5, width) for width in widths)


NETWORKS = {
    **{
        f"encoder {batch_first=} {norm_first=}": (lambda b=batch_first, n=norm_first: Encoder(b, n), (6,))
        for batch_first, norm_first in itertools.product([False, True], [False, True])
    },
    "decoder": (Decoder, (6, 5)),
    "decoder norm last": (lambda: Decoder(norm_first=False), (6, 5)),
    "cross": (Cross, (6, 5)),
    "chain": (Chain, (6,)),
    "whole": (Whole, (6, 5)),
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    make, widths = request.param
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model, example(*widths)


def attentions(model):
    return [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]


def test_heads_and_width_go_and_masked_equals_cut(network):
    model, x = network
    plan = plan_pruning(model, x, 0.5, score="magnitude")
    assert list(plan.frozen) == ["head"]
    small, masked = shrink(model, plan).double().eval(), copy.deepcopy(model).double()
    mask_(masked.eval(), plan)
    exact = tuple(value.double() for value in x)
    for grad in (False, True):  # PyTorch's fused kernels, and not
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(small(*exact), masked(*exact), rtol=0, atol=1e-9)
    for module in attentions(small):
        assert (module.num_heads, module.head_dim) == (HEADS // 2, WIDTH // HEADS)
        assert module.embed_dim == module.out_proj.weight.shape[0] == WIDTH // 2
        assert module.out_proj.in_features == module.num_heads * module.head_dim


@pytest.mark.parametrize("amount", [0.3, 0.5])
def test_gradients_of_the_cut_network_are_those_of_the_masked(network, amount):
    model, x = network
    plan = plan_pruning(model, x, amount, score="magnitude")
    small, masked = shrink(model, plan).double().train(), copy.deepcopy(model).double().train()
    mask_(masked, plan)
    for each in (small, masked):
        each(*(value.double() for value in x)).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in masked.named_parameters()}
    for cut in plan.cuts:
        kept = torch.tensor([i for i in range(cut.size) if i not in cut.removed])
        for slot in cut.slots:
            grads[slot.tensor] = grads[slot.tensor].index_select(slot.dim, kept)
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-9, atol=1e-9, msg=name)


class Alone(nn.Module):
    """One attention and a residual sum; the weights that it is asked for are read by nobody, or put out."""

    def __init__(self, *, puts_out=False, **options):
        super().__init__()
        self.start, self.head, self.puts_out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3), puts_out
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x, **masks):
        x = self.start(x)
        out, weights = self.attention(x, x, x, **masks)
        return (self.head(x + out), weights) if self.puts_out else self.head(x + out)


@pytest.mark.parametrize("masks", [{}, {"key_padding_mask": PADDING}, {"attn_mask": torch.zeros(5, 5)}], ids=list)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_zero_attn": True}, {"add_bias_kv": True}], ids=list)
def test_masks_and_further_places_leave_the_heads_free(options, masks):
    torch.manual_seed(0)
    model, (x,) = Alone(**options), example(6)
    plan = plan_pruning(model, {"x": x, **masks}, 0.5)
    assert list(plan.frozen) == ["head"]
    assert shrink(model, plan).attention.num_heads == HEADS // 2


def test_heads_stay_where_somebody_else_counts_them():
    (x,) = example(6)
    each = plan_pruning(Alone(), {"x": x, "attn_mask": torch.zeros(2 * HEADS, 5, 5)}, 0.5)
    assert "attn_mask has shape (8, 5, 5), expected (5, 5) or (6, 5, 5)" in each.frozen["attention.in_proj_weight"]
    put_out = plan_pruning(Alone(puts_out=True), x, 0.5)
    assert put_out.frozen["attention.in_proj_weight"].startswith("mean mixes its channels")


def test_the_class_of_pytorch_stays_where_it_takes_the_widths():
    model, x = Encoder(), example(6)
    even = shrink(model, plan_pruning(model, x, 0.5))
    assert {type(module) for module in attentions(even)} == {nn.MultiheadAttention}
    assert even.encoder.use_nested_tensor
    only_heads = plan_pruning(model, x, 0.5, exclude=["start"])
    cut = shrink(model, only_heads)
    assert {type(module) for module in attentions(cut)} == {HeadAttention}
    assert not cut.encoder.use_nested_tensor
    assert all(isinstance(module, nn.MultiheadAttention) for module in attentions(cut))
    assert list(cut.state_dict()) == list(model.state_dict())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("exclude", [[], ["start"], ["*.self_attn.in_proj_weight"]], ids=["all", "heads", "width"])
@pytest.mark.parametrize("amount", [0.25, 0.5])
def test_padding_is_left_out_in_evaluation_too(exclude, amount):
    """In eval mode, without gradients, PyTorch hands weights to fused kernels, and nested tensors where all is even."""
    torch.manual_seed(0)
    model, (x,) = Encoder().eval(), example(6)
    plan = plan_pruning(model, x, amount, exclude=exclude, score="magnitude")
    assert not any("cannot be cut" in why for why in plan.frozen.values())
    small, masked = shrink(model, plan), copy.deepcopy(model)
    mask_(masked, plan)
    outputs = []
    for each, grad in itertools.product((small, masked), (False, True)):
        with torch.set_grad_enabled(grad):
            outputs.append(each(x, PADDING)[~PADDING].detach())
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_fused_kernels_run_again_once_nothing_is_masked():
    model, (x,) = Encoder().eval(), example(6)
    plan = plan_pruning(model, x, 0.5)
    mask_(model, plan)
    assert not model.encoder.use_nested_tensor
    assert not model.encoder.layers[0].activation_relu_or_gelu
    mask_(model, plan_pruning(model, x, 0.5, exclude=["start"]))
    assert model.encoder.use_nested_tensor
    assert model.encoder.layers[0].activation_relu_or_gelu == 2


def test_fused_kernels_are_off_in_what_is_masked_later():
    """In a network that loads a masked one's weights, and in a mean of its weights."""
    model, (x,) = Encoder().eval(), example(6)
    mean = AveragedModel(model)
    plan = plan_pruning(model, x, 0.5)
    mask_(model, plan)
    fresh, state = Encoder().eval(), model.state_dict()
    restore_masks_(fresh, state)
    fresh.load_state_dict(state)
    Copies([mean], model, "").mask_(plan)
    with torch.no_grad():
        expected = model(x, PADDING)[~PADDING]
        for other in (fresh, mean):
            torch.testing.assert_close(other(x, PADDING)[~PADDING], expected)


def only_heads_cut(**options):
    torch.manual_seed(0)
    model, x = Encoder(**options).eval(), example(6)
    return shrink(model, plan_pruning(model, x, 0.5, exclude=["start"])), x[0]


def test_it_is_pruned_again():
    small, x = only_heads_cut()
    smaller = shrink(small, plan_pruning(small, x, 0.5, score="magnitude"))
    assert [module.num_heads for module in attentions(smaller)] == [1, 1]
    assert [module.embed_dim for module in attentions(smaller)] == [8, 8]
    halves = plan_pruning(small, x, 0.5, score="magnitude", exclude=["*in_proj_weight"])
    assert {type(module) for module in attentions(shrink(small, halves))} == {nn.MultiheadAttention}


class Named(nn.MultiheadAttention):
    """Somebody's own class, whose forward asks for no weights."""

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", [None, Named])
def test_it_is_copied_pickled_and_loaded(kind):
    small, x = only_heads_cut()
    if kind is not None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, WIDTH), Named(WIDTH, HEADS, batch_first=True), nn.Linear(WIDTH, 3)).eval()
        small = shrink(model, plan_pruning(model, x, 0.5, exclude=["0"]))
        assert isinstance(small[1], Named)
    assert [module.num_heads for module in attentions(small)] == [HEADS // 2] * len(attentions(small))
    fresh = copy.deepcopy(small)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(small.state_dict())
    expected = small(x)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), fresh):
        assert torch.equal(other(x), expected)
        assert [type(module) for module in attentions(other)] == [type(module) for module in attentions(small)]


def test_the_file_computes_what_the_cut_network_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    small, x = only_heads_cut(layers=1)
    path = lighten.export_onnx(small, x, tmp_path / "small.onnx")
    for batch in (x, torch.randn(3, 5, 6)):
        (seen,) = onnxruntime.InferenceSession(path).run(None, {"input": batch.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(seen), small(batch), rtol=1e-4, atol=1e-5)


def test_torch_export_takes_it():
    small, x = only_heads_cut()
    program = torch.export.export(small, (x,))
    torch.testing.assert_close(program.module()(x), small(x), rtol=1e-5, atol=1e-6)


class Tokens(nn.Module):
    """Images as five tokens."""

    def __init__(self):
        super().__init__()
        self.inner = Encoder()

    def forward(self, x):
        return self.inner(x.flatten(1).unflatten(1, (5, 6))).mean(1)


@pytest.mark.parametrize("exclude", [[], ["inner.start"]], ids=["all", "heads"])
def test_a_folder_gives_it_back(tmp_path, monkeypatch, exclude):
    monkeypatch.setattr(_REGISTRY, "_builders", dict(_REGISTRY._builders))
    lighten.register_model("tokens")(lambda num_classes, input_shape: Tokens())
    torch.manual_seed(0)
    model, x = lighten.build_model("tokens", num_classes=3, input_shape=(1, 5, 6)), torch.randn(2, 1, 5, 6)
    small = shrink(model, plan_pruning(model, x, 0.5, exclude=exclude)).eval()
    loaded = lighten.load(lighten.save(small, tmp_path / "small"))
    assert [type(module) for module in attentions(loaded)] == [type(module) for module in attentions(small)]
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))


def test_a_vision_transformer_loses_heads_in_every_block(torchvision):
    """That of torchvision; its hidden width is also a number that its forward reads."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 3, HEADS, 32, 48, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 32, 32)
    plan = plan_pruning(model, x, 0.5, score="magnitude")
    small, masked = shrink(model, plan).double(), copy.deepcopy(model).double()
    mask_(masked, plan)
    with torch.no_grad():
        torch.testing.assert_close(small(x.double()), masked(x.double()), rtol=0, atol=1e-9)
    assert [module.num_heads for module in attentions(small)] == [HEADS // 2] * 3


def test_quantization_treats_it_as_pytorchs_own():
    torch.manual_seed(0)
    whole, (x,) = Alone().eval(), example(6)
    call = {"x": x, "attn_mask": torch.zeros(5, 5), "key_padding_mask": PADDING.float() * -9}
    small = shrink(whole, plan_pruning(whole, call, 0.5, exclude=["start"]))
    expected = small(**call)
    places = [quantizers_of(quantize_(model, example_input=call)).placement for model in (small, whole)]
    assert places[0].layers == places[1].layers
    assert places[0].locations == places[1].locations
    assert places[0].left == places[1].left
    calibrate_(small, [call])
    assert 0 < (small(**call) - expected).abs().max() < 0.2 * expected.abs().max()


def test_a_quantized_network_is_cut_and_unquantized():
    torch.manual_seed(0)
    model, (x,) = Encoder().eval(), example(6)
    plan = plan_pruning(model, x, 0.5, exclude=["start"])
    expected = shrink(model, plan)(x)
    small = shrink(calibrate_(quantize_(copy.deepcopy(model), example_input=x), [x]), plan)
    quantized = small(x)
    assert 0 < (quantized - expected).abs().max() < 0.2 * expected.abs().max()
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again(x), quantized)
    unquantize_(small)
    assert {type(module) for module in attentions(small)} == {HeadAttention}
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-6)
