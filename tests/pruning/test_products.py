"""Rules of products: layers of parameters in every form, einsum and attention; cut against masked."""

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import Net, assert_right
from torch import nn
from transformers.integrations.moe import _grouped_mm

from lighten.errors import UserError
from lighten.pruning import plan_pruning
from lighten.pruning.einsum import terms_of


def test_products_of_one_matrix_tie_what_is_summed_over():
    """q and k meet channel by channel, v goes through: attention of one head, without heads."""
    model = Net(
        lambda s, x: s.head(torch.softmax(s.q(x) @ s.k(x).transpose(1, 2), -1) @ s.v(x)), q=nn.Linear(6, 8),
        k=nn.Linear(6, 8), v=nn.Linear(6, 10), head=nn.Linear(10, 2),
    ).eval()  # fmt: skip
    plan = assert_right(model, torch.rand(2, 5, 6))
    assert {row.layers: row.width_after for row in plan.groups} == {("q", "k"): 4, ("v",): 5}


def test_heads_of_a_fused_projection_go_as_wholes():
    def body(s, x):
        q, k, v = s.qkv(x).unflatten(-1, (3, -1, 4)).unbind(2)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return s.head(y.transpose(1, 2).flatten(2))

    model = Net(body, qkv=nn.Linear(6, 3 * 4 * 4), head=nn.Linear(16, 2)).eval()
    plan = assert_right(model, torch.rand(2, 5, 6))
    (row,) = plan.groups
    assert (row.width_before, row.width_after) == (4, 2)
    assert plan.widths["qkv"] == (48, 24)
    (cut,) = [cut for cut in plan.cuts if any(slot.tensor == "head.weight" for slot in cut.slots)]
    assert {place // 4 for place in cut.removed} == set(row.removed)


def test_keys_shared_by_heads_tie_the_heads_that_share_them():
    def body(s, x):
        q, k, v = s.q(x).unflatten(-1, (-1, 4)), s.k(x).unflatten(-1, (-1, 4)), s.v(x).unflatten(-1, (-1, 4))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return s.head(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))

    model = Net(body, q=nn.Linear(6, 32), k=nn.Linear(6, 16), v=nn.Linear(6, 16), head=nn.Linear(32, 2)).eval()
    (row,) = assert_right(model, torch.rand(2, 5, 6)).groups
    assert (row.layers, row.width_before) == (("q", "k", "v"), 4)


@pytest.mark.parametrize("groups", [2, 8])
def test_transposed_convolutions_in_groups(groups):
    model = Net(
        lambda s, x: s.head(F.relu(s.up(F.relu(s.a(x))))), a=nn.Conv2d(3, 8, 1),
        up=nn.ConvTranspose2d(8, 16, 2, 2, groups=groups), head=nn.Conv2d(16, 2, 1),
    ).eval()  # fmt: skip
    assert assert_right(model, torch.rand(2, 3, 6, 6)).widths["a"] == (8, 4)
    assert plan_pruning(model, torch.rand(2, 3, 6, 6), 0.5).widths["up"] == (8, 4)


class Weighted(nn.Module):
    """A linear layer, written by hand around a parameter."""

    def __init__(self, forward, *shape):
        super().__init__()
        self.weight, self.bias, self.head = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(16)), None
        self.head, self.run = nn.Linear(16, 3), forward

    def forward(self, x):
        return self.head(self.run(self, x).relu())


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda s, x: x @ s.weight.T + s.bias, (16, 8)),
        (lambda s, x: torch.addmm(s.bias, x, s.weight.t()), (16, 8)),
        (lambda s, x: F.linear(x, s.weight.to(x.dtype), s.bias.clone()), (16, 8)),
        (lambda s, x: (s.weight @ x.unsqueeze(-1)).squeeze(-1) + s.bias, (16, 8)),
        (lambda s, x: torch.einsum("bi,oi->bo", x, s.weight) + s.bias, (16, 8)),
        (lambda s, x: F.linear(x, s.weight[:, :, 0, 0], s.bias), (16, 8, 1, 1)),
        (lambda s, x: F.linear(x, s.weight.flatten(1), s.bias), (16, 8, 1)),
        (lambda s, x: sum(F.linear(x, part, s.bias) for part in s.weight), (2, 16, 8)),
    ],
    ids=["matmul", "addmm", "cast", "from the left", "einsum", "picked", "flattened", "a stack of two"],
)
def test_a_product_with_an_own_parameter_is_a_linear_layer(forward, shape):
    plan = assert_right(Weighted(forward, *shape).eval(), torch.randn(4, 8))
    assert plan.groups[0].layers[0].startswith("weight")
    assert plan.groups[0].width_after == 8


def test_one_weight_in_equal_parts_is_several_layers():
    def forward(net, x):
        q, k, v = (F.linear(x, w, b) for w, b in zip(net.weight.chunk(3), net.biases.chunk(3), strict=True))
        return q * k.sigmoid() + v

    model = Weighted(forward, 48, 8)
    model.biases = nn.Parameter(torch.randn(48))
    plan = assert_right(model.eval(), torch.randn(4, 8))
    assert plan.widths["weight"] == (48, 24)


class Equation(nn.Module):
    """A linear layer, a product of what it gives with parameters and the input, a linear layer."""

    def __init__(self, run, width, *shapes):
        super().__init__()
        self.a, self.head, self.run = nn.Linear(8, 12), nn.Linear(width, 3), run
        for i, shape in enumerate(shapes):
            setattr(self, f"w{i}", nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.head(self.run(self, self.a(x)).relu())


EQUATIONS = {
    "heads of outputs": (
        lambda s, x: torch.einsum("bnd,hdk->bhnk", x, s.w0).transpose(1, 2).flatten(2), 24, ["a", "w0"], (6, 12, 4),
    ),
    "heads of inputs": (
        lambda s, x: torch.einsum("bnhk,hkd->bnd", x.unflatten(-1, (-1, 4)), s.w0), 10, ["a", "w0"], (3, 4, 10),
    ),
    "a parameter first": (lambda s, x: torch.einsum("od,...d->...o", s.w0, x), 10, ["a", "w0"], (10, 12)),
    "no arrow": (lambda s, x: torch.einsum("bnd,do", x, s.w0), 10, ["a", "w0"], (12, 10)),
    "element by element": (lambda s, x: torch.einsum("bnc,c->bnc", x, s.w0), 12, ["a"], (12,)),
    "three": (lambda s, x: torch.einsum("bnd,dr,ro->bno", x, s.w0, s.w1), 10, ["a", "w0", "w1"], (12, 6), (6, 10)),
    "several rows": (
        lambda s, x: torch.einsum("bnmc,bc->bnm", x[:, :, None] * torch.ones(5, 3, 1), x.mean(1)).mean(1)[..., None]
        * x[:, :1], 12, ["a"],
    ),
    "experts": (
        lambda s, x: torch.einsum("ebnd,edk->ebnk", x.expand(3, *x.shape), s.w0).sum(0), 10, ["a", "w0"], (3, 12, 10),
    ),
    "frequencies": (
        lambda s, x: torch.einsum("bnd,ndk->bnk", x, s.w0).sum(1), 10, ["a", "w0"], (5, 12, 10),
    ),
    "a sum within": (lambda s, x: torch.einsum("bnd,de->be", x, s.w0), 10, ["a", "w0"], (12, 10)),
    "attention": (
        lambda s, x: torch.einsum("bnm,bmc->bnc", torch.einsum("bnc,bmc->bnm", x, x).softmax(-1), x), 12, ["a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations_of_einsum(name):
    run, width, layers, *shapes = EQUATIONS[name]
    torch.manual_seed(0)
    plan = assert_right(Equation(run, width, *shapes).eval(), torch.rand(2, 5, 8))
    pruned = [layer for layer, (before, after) in plan.widths.items() if after < before]
    assert sorted(pruned) == sorted(layers), plan.frozen


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("...d,hdk->...hk", [(2, 3, 4), (5, 4, 6)]), ("ba", [(2, 3)]), ("bnd,do", [(2, 3, 4), (4, 5)]),
     ("...,...", [(2, 3), (2, 3)]), ("bij , bjk -> bik", [(2, 3, 4), (2, 4, 5)]), ("i...,j->...j", [(2, 3), (4,)])],
)  # fmt: skip
def test_an_equation_spelt_out_computes_the_same(equation, shapes):
    operands = [torch.randn(shape) for shape in shapes]
    terms, right = terms_of(equation, [len(shape) for shape in shapes])
    spelt = f"{','.join(terms)}->{right}"
    assert "." not in spelt
    assert torch.equal(torch.einsum(spelt, operands), torch.einsum(equation, operands))


def test_a_diagonal_is_left_alone():
    assert terms_of("bii->bi", (3,)) is None


def test_experts_lose_the_same_channels_in_steps_that_strides_allow():
    """Each row times the matrix of its expert, as a slow loop does; sixteen bytes are a multiple of any stride."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.head = nn.Linear(8, 32), nn.Linear(16, 2)
            self.up, self.down = nn.Parameter(torch.randn(3, 24, 32)), nn.Parameter(torch.randn(3, 24, 16))
            self.register_buffer("ends", torch.tensor([2, 3, 6], dtype=torch.int32))

        def forward(self, x):
            y = _grouped_mm(self.a(x), self.up.transpose(1, 2), self.ends)
            return self.head(_grouped_mm(F.gelu(y), self.down, self.ends))

    model, x = Experts().eval(), torch.randn(6, 8)
    by_hand = torch.stack(
        [F.gelu(model.a(row) @ model.up[i].T) @ model.down[i] for row, i in zip(x, (0, 0, 1, 2, 2, 2), strict=True)]
    )
    assert torch.allclose(model(x), model.head(by_hand), atol=1e-5)
    plan = assert_right(model, x, 0.4)
    assert {name: plan.widths[name] for name in ("a", "up", "down")} == {"a": (32, 16), "up": (24, 16), "down": (16, 8)}
    assert [row.name for row in plan.groups] == ["a", "up", "down"]


def test_experts_that_all_see_the_same_channels_are_layers_in_one_parameter():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.head = nn.Linear(8, 12), nn.Linear(6, 2)
            self.up, self.down = nn.Parameter(torch.randn(3, 12, 10)), nn.Parameter(torch.randn(3, 10, 6))

        def forward(self, x):
            y = torch.bmm(self.a(x).view(3, 2, -1), self.up)
            return self.head(torch.bmm(F.gelu(y), self.down))

    plan = assert_right(Experts().eval(), torch.randn(6, 8), 0.5)
    assert {name: plan.widths[name] for name in ("a", "up", "down")} == {"a": (12, 6), "up": (10, 5), "down": (6, 3)}


@pytest.mark.parametrize(
    "mix",
    [nn.Conv1d(6, 6, 1), nn.Conv1d(6, 4, 1, groups=2), nn.ConvTranspose1d(6, 4, 1), nn.Conv1d(6, 6, 1, groups=6)],
)
def test_a_convolution_over_places_lets_the_channels_beside_them_through(mix):
    model = Net(lambda s, x: s.head(s.mix(s.a(x).relu())), a=nn.Linear(5, 8), mix=mix, head=nn.Linear(8, 2)).eval()
    plan = assert_right(model, torch.randn(2, 6, 5))
    assert plan.widths["a"] == (8, 4)
    assert plan.frozen["mix"].startswith("mixes places, not channels")


@pytest.mark.parametrize("mix", [nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 6, 1, stride=2)])
def test_a_convolution_whose_window_moves_over_channels_ties_them(mix):
    model = Net(lambda s, x: s.b(s.mix(s.a(x).relu())), a=nn.Linear(5, 8), mix=mix, b=nn.LazyLinear(2)).eval()
    model(torch.randn(2, 6, 5))
    with pytest.raises(UserError, match="a its channels can only go all at once"):
        plan_pruning(model, torch.randn(2, 6, 5), 0.5)
