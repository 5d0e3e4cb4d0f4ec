"""Forwards that a proof could be blind to: each is cut rightly, or refused by name."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning, shrink
from lighten.utils.clone import clone


class Net(nn.Module):
    """Layers by name, and a forward that is a function of them and the input."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def dense(body, inputs=8, width=8, **layers):
    torch.manual_seed(0)
    return Net(body, a=nn.Linear(inputs, width), head=nn.Linear(width, 2), **layers).eval()


def assert_right(model, x, amount=0.5, **settings):
    plan = plan_pruning(model, x, amount, **settings)
    small = shrink(model, plan)
    masked = clone(model)
    mask_(masked, plan)
    other = torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype) + 0.1
    with torch.no_grad():
        assert (masked(other) - small(other)).abs().max() <= 1e-4 * masked(other).abs().max()
    small.train()(other)
    return plan


def test_inputs_that_are_not_negative_stay_so():
    """A logarithm of random normals is NaN everywhere: nothing would differ from anything."""
    model = dense(lambda s, x: s.head(F.relu(s.a(torch.log(x))) / s.a(x).shape[-1]))
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(model, torch.rand(4, 8) + 0.1, 0.5)
    model = dense(lambda s, x: s.head(F.relu(s.a(torch.log(x)))))
    assert assert_right(model, torch.rand(4, 8) + 0.1).widths["a"] == (8, 4)


@pytest.mark.parametrize("example", [torch.zeros(4, 8), torch.ones(4, 8)], ids=["zeros", "ones"])
def test_a_blank_example_stands_for_any_other(example):
    """Networks without biases put out zeros on zeros, and nothing differs from anything."""
    layers = {"a": nn.Linear(8, 8, bias=False), "head": nn.Linear(8, 2, bias=False)}
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(Net(lambda s, x: s.head(F.relu(s.a(x)) / s.a(x).shape[-1]), **layers).eval(), example, 0.5)
    assert_right(Net(lambda s, x: s.head(F.relu(s.a(x))), **layers).eval(), example)


def test_where_all_is_zero_nothing_can_be_proved():
    with pytest.raises(UserError, match=r"Net puts out NaN or zeros on random input"):
        plan_pruning(dense(lambda s, x: s.head(F.relu(s.a(x))) * 0), torch.randn(4, 8), 0.5)


def test_a_size_that_depends_on_the_data_is_refused_by_name():
    with pytest.raises(UserError, match=r"index gives a size that depends on the values .*\(test_hard_cases.py:\d+\)"):
        plan_pruning(dense(lambda s, x: s.head(s.a(x)[x[..., 0] > 0])), torch.randn(4, 5, 8), 0.5)


def test_where_all_is_nan_nothing_can_be_proved():
    model = dense(lambda s, x: s.head(F.relu(s.a(x)) * float("nan")))
    with pytest.raises(UserError, match=r"Net puts out NaN or zeros on random input of the example's shapes"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-11])
def test_outputs_may_be_small(scale):
    model = dense(lambda s, x: s.head(F.relu(s.a(x)) / s.a(x).shape[-1]) * scale)
    with pytest.raises(UserError, match=r"a cannot be cut: the forward fixes the number"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


def test_a_model_may_keep_what_its_forward_computed():
    def body(s, x):
        s.last = F.relu(s.a(x))
        return s.head(s.last)

    model, x = dense(body), torch.randn(4, 8)
    assert_right(model, x)
    assert not hasattr(model, "last")  # tracing leaves nothing of its own behind
    model(x)
    assert_right(model, x)


def test_operators_in_place_change_the_tensor_that_is_read_later():
    def body(s, x):
        x = s.a(x)
        p = F.adaptive_avg_pool2d(x, 1)
        q = p.clone().squeeze_(-1).squeeze_(-1)
        return s.head(x * torch.sigmoid(s.b(p) + s.c(q)[..., None, None]))

    model = Net(body, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1), c=nn.Linear(8, 8), head=nn.Conv2d(8, 2, 1)).eval()
    assert assert_right(model, torch.rand(2, 3, 6, 6)).widths["a"] == (8, 4)


def test_a_tensor_changed_in_place_is_read_by_its_old_name():
    def body(s, x):
        p = F.adaptive_avg_pool2d(s.a(x), 1)
        p.squeeze_(-1)
        p.squeeze_(-1)
        return s.head(p)

    model = Net(body, a=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 2)).eval()
    assert assert_right(model, torch.rand(2, 3, 6, 6)).widths["a"] == (8, 4)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_halves_lose_as_many_each_whatever_the_scope(width):
    def body(s, x):
        u, v = F.relu(s.a(x)).chunk(2, 1)
        return s.head(torch.cat([F.relu(s.b(u)), F.relu(s.c(v))], 1))

    convs = {
        "a": nn.Conv2d(3, 2 * width, 3), "b": nn.Conv2d(width, 8, 1), "c": nn.Conv2d(width, 6, 1),
        "head": nn.Conv2d(14, 2, 1),
    }  # fmt: skip
    convs["a"].weight.data[:width] *= 0.01  # a global choice would take these alone
    plan = assert_right(Net(body, **convs).eval(), torch.rand(2, 3, 6, 6), scope="global")
    assert plan.widths["a"][1] % 2 == 0


def test_halves_by_slices_of_the_width_are_parts_too():
    def body(s, x):
        x = F.relu(s.a(x))
        n = x.shape[1] // 2
        return s.head(x[:, :n] * torch.sigmoid(x[:, n:]))

    model = Net(body, a=nn.Conv2d(3, 12, 3), head=nn.Conv2d(6, 2, 1)).eval()
    assert assert_right(model, torch.rand(2, 3, 6, 6)).widths["a"] == (12, 6)


def test_training_has_a_say():
    """A norm that only training uses is not in the graph: its statistics cannot follow."""
    model = dense(lambda s, x: s.head(F.relu(s.n(s.a(x)) if s.training else s.a(x))), n=nn.BatchNorm1d(8))
    with pytest.raises(UserError, match=r"a cannot be cut: .*, in training mode"):
        plan_pruning(model, torch.randn(4, 8), 0.5)


def test_one_channel_that_stays_alone_may_lose_its_dimension():
    model = Net(
        lambda s, x: s.head(F.adaptive_avg_pool2d(F.relu(s.a(x)), 1).squeeze()), a=nn.Conv2d(3, 4, 3),
        head=nn.Linear(4, 2),
    ).eval()  # fmt: skip
    assert_right(model, torch.rand(2, 3, 6, 6))
    plan = plan_pruning(model, torch.rand(2, 3, 6, 6), 0.75)
    assert plan.widths["a"] == (4, 2)
    shrink(model, plan)


def test_stacked_branches_that_are_summed_are_added():
    model = Net(
        lambda s, x: s.head(torch.stack([s.a(x), s.b(x)], 1).sum(1)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3),
        head=nn.Conv2d(8, 2, 1),
    ).eval()  # fmt: skip
    assert assert_right(model, torch.rand(2, 3, 6, 6)).groups[0].layers == ("a", "b")


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


def test_places_picked_by_an_index_leave_the_channels_free():
    model = Net(
        lambda s, x: s.head(s.a(x)[torch.arange(2), torch.tensor([1, 3])]), a=nn.Linear(6, 8), head=nn.Linear(8, 2)
    ).eval()
    with torch.no_grad():
        plan = plan_pruning(model, torch.rand(2, 5, 6), 0.5)
    assert plan.widths["a"] == (8, 4)


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


class Query(nn.Module):
    """A norm of a parameter, whose channels the stream has too."""

    def __init__(self):
        super().__init__()
        self.up, self.query, self.norm = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8)), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.up(x) + self.norm(self.query).mean(0))


def test_a_norm_of_a_parameter_follows_the_stream():
    assert assert_right(Query().eval(), torch.randn(2, 8)).widths["up"] == (8, 4)


class Lazy(nn.Module):
    """Installs hooks at its first call, keeps a tensor in a dict and one in an attribute."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(32, 3)
        self.table, self.cache, self.last, self.seen, self.ready = nn.Parameter(torch.randn(16)), {}, None, [], False

    def forward(self, x):
        if not self.ready:
            for layer in (self.a, self.b):
                layer.register_forward_hook(lambda _m, _i, out: self.seen.append(out))
            self.ready = True
        self.seen.clear()
        bias = self.cache.setdefault("bias", self.table.exp())
        self.last = self.b((self.a(x) + bias).relu())
        return self.head(torch.cat(self.seen, -1))


@pytest.mark.parametrize("called", [False, True], ids=["before its first call", "after it"])
def test_a_model_that_keeps_things_is_planned_and_left_as_it_is(called):
    model, x = Lazy().eval(), torch.randn(2, 8)
    if called:
        model(x)
    seen = lambda: (  # noqa: E731
        dict(model.cache), model.last, list(model.seen), model.ready, [len(m._forward_hooks) for m in model.modules()]
    )  # fmt: skip
    before = seen()
    plan = plan_pruning(model, x, 0.5)
    small = shrink(model, plan)
    after = seen()
    assert all(a is b for a, b in zip((*before[0].values(), before[1]), (*after[0].values(), after[1]), strict=True))
    assert before[3:] == after[3:]
    assert plan.widths == {"a": (16, 8), "b": (16, 8), "head": (3, 3)}
    masked = clone(model)
    mask_(masked, plan)
    masked.cache.clear()
    assert torch.allclose(masked(x), small(x), atol=1e-6)


def test_a_dataclass_that_pytorch_does_not_know_is_an_output_like_any_other():
    @dataclass
    class Inner:
        features: torch.Tensor

    @dataclass
    class Output:
        logits: torch.Tensor
        inner: Inner

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x):
            features = self.b(self.a(x).relu())
            return Output(self.c(features.relu()), Inner(features))

    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 4)
    plan = plan_pruning(model, x, 0.5)
    assert plan.widths["a"] == (16, 8)
    assert plan.widths["b"] == (8, 8), "its channels leave the network"
    mask_(model, plan)
    small = shrink(model, plan)
    torch.testing.assert_close(small(x).inner.features, model(x).inner.features)
