"""Rules of operators: the labels that they give against what their outputs depend on; cut against masked."""

import re

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import Net, assert_right, dense, groups_of, net
from torch import nn

from lighten.errors import UserError
from lighten.pruning import plan_pruning
from lighten.pruning import shrink as shrink_of
from lighten.pruning.groups import find_groups
from lighten.pruning.rules import follow
from lighten.pruning.trace import Tracer, export

conv = nn.Conv2d


def test_a_size_that_depends_on_the_data_is_refused_by_name():
    with pytest.raises(UserError, match=r"index gives a size that depends on the values .*\(pruning_nets.py:\d+\)"):
        plan_pruning(dense(lambda s, x: s.head(s.a(x)[x[..., 0] > 0])), torch.randn(4, 5, 8), 0.5)


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


def test_stacked_branches_that_are_summed_are_added():
    model = Net(
        lambda s, x: s.head(torch.stack([s.a(x), s.b(x)], 1).sum(1)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3),
        head=nn.Conv2d(8, 2, 1),
    ).eval()  # fmt: skip
    assert assert_right(model, torch.rand(2, 3, 6, 6)).groups[0].layers == ("a", "b")


@pytest.mark.parametrize(
    "pick",
    [lambda y: y[torch.arange(2), torch.tensor([1, 3])], lambda y: y.index_select(1, torch.arange(3))],
    ids=["index", "index_select"],
)
def test_places_picked_by_an_index_leave_the_channels_free(pick):
    model = Net(lambda s, x: s.head(pick(s.a(x))), a=nn.Linear(6, 8), head=nn.Linear(8, 2)).eval()
    with torch.no_grad():
        plan = plan_pruning(model, torch.rand(2, 5, 6), 0.5)
    assert plan.widths["a"] == (8, 4)


@pytest.mark.parametrize(
    "body",
    [
        lambda s, x: s.head(F.normalize(s.a(x), dim=-1)),
        lambda s, x: s.head(s.a(x) * (s.a(x) * s.b(x)).sum(-1, keepdim=True)),
        lambda s, x: s.head(s.a(x) / (1 + s.a(x).norm(dim=-1, keepdim=True))),
    ],
    ids=["normalized", "dot product", "norm"],
)
def test_sums_of_what_masking_makes_zero_let_it_go(body):
    assert assert_right(dense(body, b=nn.Linear(8, 8)), torch.rand(2, 5, 8)).widths["a"] == (8, 4)


@pytest.mark.parametrize(
    "body",
    [
        lambda s, x: s.head(s.a(x) * s.a(x).sigmoid().sum(-1, keepdim=True)),
        lambda s, x: s.head(s.a(x) * s.a(x).sum(-1, keepdim=True) / s.a(x).shape[-1]),
        lambda s, x: s.head(s.a(x) - s.a(x).exp().sum(-1, keepdim=True)),
    ],
    ids=["sigmoid", "divided", "exponents"],
)
def test_sums_of_what_is_not_zero_are_shown_by_a_trial(body):
    with pytest.raises(UserError, match="a cannot be cut"):
        plan_pruning(dense(body), torch.rand(2, 5, 8), 0.5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "rnn_tanh")],
    ids=["lstm", "gru", "rnn"],
)
def test_recurrent_layers_are_named(kind, name):
    def body(s, x):
        return s.head(s.b(s.cell(s.a(x))[0]).relu())

    model = dense(body, cell=kind(8, 6, batch_first=True, bidirectional=True), b=nn.Linear(12, 8))
    plan = assert_right(model, torch.rand(2, 5, 8))
    assert plan.frozen["cell"].startswith(f"its hidden width stays: {name} reads what it puts out (")
    assert plan.widths["b"] == (8, 4)


def test_complex_mixers_are_left_alone_by_name():
    model = dense(lambda s, x: s.head(s.b(torch.fft.fft2(s.a(x)).real).relu()), b=nn.Linear(8, 8))
    plan = assert_right(model, torch.rand(2, 5, 8))
    assert plan.frozen["a"].startswith("goes through fft_fft2 (")
    assert plan.widths["b"] == (8, 4)


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


class Registers(nn.Module):
    """A network that may have tokens of its own, and has none."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.tokens = nn.Parameter(torch.randn(1, 0, 8))

    def forward(self, x):
        x = self.down(self.up(x).relu())
        return self.head(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))


def test_a_parameter_of_nothing_is_no_hindrance():
    plan = assert_right(Registers().eval(), torch.rand(2, 5, 8))
    assert plan.widths["up"] == (6, 3)
    assert plan.frozen["down"].startswith("cannot be cut: ")


def test_a_padded_shortcut_moves_with_the_channels_it_carries(build, images):
    structure = find_groups(build("residual-pad"), ((images,), {}))
    stem = structure.groups[0]
    carried = next(index for slot, index in stem.positions.items() if slot.tensor == "b2.0.weight")
    assert carried.flatten().tolist() == list(range(4, 12))
    assert structure.frozen["b2.0"].startswith("8 of 16 channels: is tied to channels that pad adds (conftest.py:")


def test_a_flattened_channel_is_all_its_pixels(build, images):
    structure = find_groups(build("flat"), ((images,), {}))
    inputs = next(index for slot, index in structure.groups[0].positions.items() if slot.tensor == "a.weight")
    assert inputs.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(6)]


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (
            net(lambda s, x: s.head(torch.softmax(s.a(x), 1)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"softmax mixes its channels \(pruning_nets.py:\d+\)",
        ),
        (
            net(lambda s, x: s.head(s.a(x) - s.a(x).mean(1, keepdim=True)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"mean mixes its channels",
        ),
        (
            net(lambda s, x: s.head(F.group_norm(s.a(x), 2)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"goes through group_norm \(pruning_nets.py:\d+\)",
        ),
        (
            net(lambda s, x: s.head(torch.linalg.matrix_exp(s.a(x))), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"goes through linalg_matrix_exp",
        ),
        (
            net(lambda s, x: s.head(x + s.a(x)), a=conv(3, 3, 1), head=conv(3, 2, 1)),
            "a",
            "is tied to the network's input",
        ),
        (
            net(lambda s, x: s.head(s.a(x) + torch.ones(1, 4, 1, 1)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"is tied to (what ones makes|a constant of the forward)",
        ),
        (
            net(lambda s, x: (s.head(s.a(x)), s.a(x)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            "is the network's output",
        ),
        (
            net(lambda s, x: s.head(s.a(x) * s.gate(x)), a=conv(3, 4, 1), gate=conv(3, 1, 1), head=conv(4, 2, 1)),
            "gate",
            "is broadcast over channels",
        ),
        (
            net(
                lambda s, x: s.head(s.a(x)),
                a=nn.utils.parametrize.register_parametrization(conv(3, 4, 1), "weight", nn.Softplus()),
                head=conv(4, 2, 1),
            ),
            "a",
            r"its weight is computed in the forward \(",
        ),
        (
            net(lambda s, x: s.head(x), head=conv(3, 2, 1), aside=conv(3, 4, 1)),
            "aside",
            "is never run on the example input",
        ),
        (
            net(lambda s, x: s.head(s.a(x).expand(-1, 4, -1, -1)), a=conv(3, 1, 1), head=conv(4, 2, 1)),
            "a",
            "its channels can only go all at once",
        ),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else str(value)[:40],
)
def test_leaves_alone_by_name(model, layer, why, images):
    found, frozen = groups_of(model, images)
    assert layer in frozen
    assert re.match(why, frozen[layer])
    assert all(layer not in layers for layers, _ in found.values())


def test_a_gate_of_one_channel_leaves_the_gated_ones_free(images):
    model = net(lambda s, x: s.head(s.a(x) * s.gate(x)), a=conv(3, 4, 1), gate=conv(3, 1, 1), head=conv(4, 2, 1))
    assert groups_of(model, images)[0] == {"a": (("a",), 4)}


def test_slices_split_a_layer_into_groups(images):
    model = net(lambda s, x: s.p(s.a(x)[:, :2]) + s.q(s.a(x)[:, 2:]), a=conv(3, 6, 1), p=conv(2, 2, 1), q=conv(4, 2, 1))
    found, _ = groups_of(model, images)
    assert found == {"a[0-1]": (("a",), 2), "a[2-5]": (("a",), 4)}


class Seen(Tracer):
    """A tracer that notes the labels of what the network puts out, and freezes nothing for it."""

    def mark_output(self, values):
        self.seen = values[0][0]


def followed(operator):
    """Return the labels of six channels, those that ``operator`` gives its output, and the tracer."""
    model = net(lambda s, x: operator(s.a(x)), a=conv(1, 6, 1))
    exported, reads = export(model, ((torch.zeros(2, 1, 4, 4),), {}))
    tracer = follow(Seen(exported, model, reads))
    return tracer.labels.find(tracer.axes["a.weight", 0].labels), tracer.seen, tracer


def depends(operator):
    """Return (6, …): whether an element of the output changes with the values of a channel."""
    y = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    found = []
    for channel in range(6):
        changed = torch.zeros_like(operator(y), dtype=torch.bool)
        for factor in (-1e2, 1e-2, 1e2):
            other = y.clone()
            other[:, channel] *= factor
            changed |= operator(other) != operator(y)
        found.append(changed)
    return torch.stack(found)


def check_labels(operator):
    """Compare labels with dependence, where an element has one channel; return the channels of each other element."""
    channels, labels, tracer = followed(operator)
    on = depends(operator).reshape(6, -1)
    given = tracer.labels.find(labels).flatten()
    assert labels.shape == operator(torch.zeros(2, 6, 4, 4)).shape
    one = on.sum(0) == 1
    assert torch.equal(given[one], channels[on[:, one].byte().argmax(0)])
    assert all(int(label) in tracer.labels.reasons() for label in given[on.sum(0) == 0])  # of a width that is fixed
    return on[:, on.sum(0) > 1].T.unique(dim=0), channels, tracer


APART = {
    "flatten": lambda y: y.flatten(1),
    "permute": lambda y: y.permute(2, 1, 3, 0),
    "view": lambda y: y.reshape(2, 3, 2, 16),
    "cat": lambda y: torch.cat([y, y.flip(1)], 1),
    "concatenate": lambda y: torch.concatenate([y, y.roll(1, 1)], 1),
    "stack": lambda y: torch.stack([y, y.roll(2, 1)]),
    "chunk": lambda y: torch.cat(y.chunk(3, 1)[::-1], 1),
    "slice": lambda y: y[:, 1:6:2, 1:],
    "select": lambda y: y[:, 2],
    "repeat": lambda y: y.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda y: y.repeat_interleave(2, 1),
    "unfold": lambda y: y.unfold(2, 2, 1),
    "channel_shuffle": lambda y: F.channel_shuffle(y, 3),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "fewer by padding": lambda y: F.pad(y, (0, 0, 0, 0, -1, -2)),
    "more by padding": lambda y: F.pad(y, (0, 0, 0, 0, 2, 1)),
    "reflected": lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "pointwise": lambda y: torch.sigmoid(y) * y.sin() + 1,
    "pooled": lambda y: F.avg_pool2d(y, 2, ceil_mode=True) + F.max_pool2d(y, 2),
    "interpolated": lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "mean over pixels": lambda y: y.mean((2, 3)),
    "softmax over pixels": lambda y: y.softmax(2) + y.cumsum(-1),
    "sorted within a channel": lambda y: y.sort(-1).values,
    "instance norm": F.instance_norm,
    "layer norm over pixels": lambda y: F.layer_norm(y, [4, 4]),
    "largest pixel": lambda y: y.flatten(2).max(2).values,
}


@pytest.mark.parametrize("operator", APART.values(), ids=APART)
def test_elements_of_one_channel_carry_its_label_and_channels_stay_apart(operator):
    mixed, channels, tracer = check_labels(operator)
    assert not len(mixed)
    assert len(channels.unique()) == 6
    assert not set(channels.tolist()) & set(tracer.labels.reasons())


MIXED = {
    "mean": lambda y: y.mean(1),
    "mean of some": lambda y: y[:, :3].mean((1, 2)),
    "smallest norm": lambda y: torch.linalg.vector_norm(y[:, 2:], ord=-1, dim=1, keepdim=True),
    "variance": lambda y: y.var((1, 2)),
    "largest channel": lambda y: y.max(1).values,
    "logsumexp": lambda y: y.logsumexp(1),
    "all at once": lambda y: y[:, ::2].mean(),
    "softmax": lambda y: y.softmax(1),
    "log_softmax": lambda y: y[:, :4].log_softmax(-3),
    "cumsum": lambda y: y.cumsum(1),
    "sorted": lambda y: y.sort(1).values,
    "centred": lambda y: y - y.mean(1, keepdim=True),
    "layer norm": lambda y: F.layer_norm(y.movedim(1, -1), [6]),
    "group norm": lambda y: F.group_norm(y, 2),
}


@pytest.mark.parametrize("operator", MIXED.values(), ids=MIXED)
def test_channels_that_meet_in_an_element_are_frozen_and_no_others(operator):
    mixed, channels, tracer = check_labels(operator)
    assert len(mixed)
    frozen = set(tracer.labels.reasons())
    assert [int(channel) in frozen for channel in channels] == mixed.any(0).tolist()


SUMMED = {
    "sum": lambda y: y.sum(1),
    "sum of some": lambda y: y[:, :3].sum((1, 2)),
    "norm": lambda y: torch.linalg.vector_norm(y[:, 2:], dim=1, keepdim=True),
    "norm of another power": lambda y: y.norm(3.0, 1),
    "all at once": lambda y: y[:, ::2].sum(),
    "einsum of one": lambda y: torch.einsum("bchw->wb", y),
}


@pytest.mark.parametrize("operator", SUMMED.values(), ids=SUMMED)
def test_channels_that_are_summed_stay_free_and_the_sum_is_of_none(operator):
    mixed, channels, tracer = check_labels(operator)
    frozen = set(tracer.labels.reasons())
    assert len(mixed)
    assert len(channels.unique()) == 6
    assert not set(channels.tolist()) & frozen
    assert set(tracer.labels.find(tracer.seen).flatten().tolist()) <= frozen


TIED = {
    "halves": lambda y: y[:, :3] * y[:, 3:],
    "mirrored": lambda y: y + y.flip(1),
    "neighbours": lambda y: torch.maximum(y, y.roll(1, 1)),
    "three": lambda y: torch.addcmul(y, y.roll(2, 1), y.roll(4, 1)),
    "chosen": lambda y: torch.where(y > 0.7, y, y.flip(1)),
    "gated": lambda y: F.glu(y, 1),
    "stacked": lambda y: torch.stack([y, y.flip(1)], 1).sum(1),
    "outer product": lambda y: y[:, :2].flatten(2) @ y[:, :2].flatten(2).transpose(1, 2),
    "einsum": lambda y: torch.einsum("bcn,bdn->bcd", y[:, :2].flatten(2), y[:, 2:4].flatten(2)),
}


@pytest.mark.parametrize("operator", TIED.values(), ids=TIED)
def test_channels_whose_elements_meet_one_to_one_are_tied_and_no_others(operator):
    mixed, channels, tracer = check_labels(operator)
    tied = torch.eye(6, dtype=torch.bool)
    for met in mixed:
        tied |= met[:, None] & met
    for _ in range(6):  # of sets that overlap
        tied |= (tied.float() @ tied.float()).bool()
    assert torch.equal(channels[:, None] == channels, tied)
    assert not set(channels.tolist()) & set(tracer.labels.reasons())


@pytest.mark.parametrize(
    "operator",
    [
        lambda y: y.flatten(2).transpose(1, 2) @ y.flatten(2),
        lambda y: torch.einsum("bcn,bcm->bnm", y.flatten(2), y.flatten(2)),
        lambda y: torch.baddbmm(torch.zeros(2, 16, 16), y.flatten(2).transpose(1, 2), y.flatten(2)),
    ],
    ids=["matmul", "einsum", "baddbmm"],
)
def test_channels_that_a_product_sums_over_stay_free_and_the_sum_is_of_none(operator):
    channels, labels, tracer = followed(operator)
    frozen = set(tracer.labels.reasons())
    assert depends(operator).all()
    assert len(channels.unique()) == 6
    assert not set(channels.tolist()) & frozen
    assert set(tracer.labels.find(labels).flatten().tolist()) <= frozen
    assert [work.macs for work in tracer.work] == [6 * 1 * 2 * 16, 2 * 16 * 6 * 16]


def test_an_operator_without_a_rule_freezes_what_goes_in_and_puts_out_one_label():
    channels, labels, tracer = followed(lambda y: torch.linalg.matrix_exp(y[:, :4]))
    assert [int(channel) in tracer.labels.reasons() for channel in channels] == [True] * 4 + [False] * 2
    assert len(labels.unique()) == 1


def test_places_picked_by_numbers_are_followed():
    def body(s, x):
        y = s.a(x)
        return s.head(y[..., [0, 2, 4, 6]] * y[..., [1, 3, 5, 7]])

    model = Net(body, a=nn.Linear(5, 8), head=nn.Linear(4, 2)).eval()
    groups, frozen = groups_of(model, torch.randn(2, 5))
    assert groups == {"a": (("a",), 4)}
    assert frozen == {"head": "is the network's output"}


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, lambda size: torch.full(size, 0.5)])
def test_a_tensor_of_one_number_is_as_wide_as_an_attribute_says(make):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head, self.width = nn.Linear(5, 8), nn.Linear(8, 2), 8

        def forward(self, x):
            return self.head(self.a(x) + make((x.shape[0], self.width)))

    plan = assert_right(Padded().eval(), torch.randn(2, 5))
    assert plan.attributes == {"width": (8, 4)}


def test_what_a_forward_draws_stays():
    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head, self.width = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2), 8

        def forward(self, x):
            return self.head(self.b(self.a(x)) + torch.arange(self.width))

    groups, frozen = groups_of(Drawn().eval(), torch.randn(2, 5))
    assert list(groups) == ["a"]
    assert frozen["b"].startswith("is tied to what arange makes")


@pytest.mark.parametrize("pick", [lambda t, i: t.index_select(0, i), lambda t, i: t[i]], ids=["select", "index"])
def test_rows_of_a_table_are_picked_and_its_columns_follow(pick):
    class Placed(nn.Module):
        """Positions of tokens, looked up in a buffer."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("table", torch.randn(9, 8))

        def forward(self, x):
            places = (x[0, :, 0] * 8).long()
            return self.head(torch.relu(self.up(x) + pick(self.table, places)))

    assert assert_right(Placed().eval(), torch.rand(2, 5, 4) * 0.9).widths["up"] == (8, 4)


@pytest.mark.parametrize("reduce", [lambda t: t.sum(1), lambda t: t.mean(1), lambda t: t.amax(1)])
def test_a_parameter_that_is_reduced_keeps_the_channels_of_what_is_left(reduce):
    class Biased(nn.Module):
        """A bias that is computed from a table."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head, self.table = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(8, 3))

        def forward(self, x):
            return self.head(torch.relu(self.up(x) + reduce(self.table)))

    assert assert_right(Biased().eval(), torch.rand(2, 4)).widths["up"] == (8, 4)


class Pooled(nn.Module):
    """Attention whose queries and keys a convolution pools, past which the first token is led; with positions."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 2, 8
        self.qkv, self.head = nn.Linear(6, 48), nn.Linear(16, 3)
        self.pools = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1, groups=8) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.positions = nn.Parameter(torch.randn(7, 8))

    def pooled(self, x, at):
        first, rest = torch.tensor_split(x, (1,), dim=2)
        b, n, length, c = rest.shape
        rest = self.pools[at](rest.transpose(2, 3).reshape(b * n, c, length)).reshape(b, n, c, length)
        return self.norms[at](torch.cat([first, rest.transpose(2, 3)], 2))

    def forward(self, x):
        b, length, _ = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.num_heads, self.head_dim).transpose(1, 3).unbind(2)
        q, k, v = (self.pooled(t, at) for at, t in enumerate(qkv))
        weights = q @ k.transpose(2, 3)
        places = torch.arange(4)[:, None] - torch.arange(4)[None] + 3
        weights[:, :, 1:, 1:] += torch.einsum("bnqc,qkc->bnqk", q[:, :, 1:], self.positions[places])
        y = weights.softmax(-1) @ v
        y[:, :, 1:] += q[:, :, 1:]
        return self.head(y.transpose(1, 2).flatten(2))


def test_tokens_led_past_a_convolution_that_heads_share_keep_its_channels():
    plan = assert_right(Pooled().eval(), torch.rand(2, 5, 6))
    assert plan.widths["qkv"] == (48, 24)
    assert plan.attributes["head_dim"] == (8, 4)


class Scan(nn.Module):
    """A selective state space: inner channels, each with a state of several numbers (Mamba)."""

    def __init__(self):
        super().__init__()
        self.rank = 2
        self.inputs, self.conv = nn.Linear(6, 16), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.choice, self.steps, self.out = nn.Linear(8, 2 + 3 + 3), nn.Linear(2, 8), nn.Linear(8, 4)
        self.decay, self.skip = nn.Parameter(torch.rand(8, 3)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        x, gate = self.inputs(x).transpose(1, 2).chunk(2, 1)
        x = F.silu(self.conv(x))
        steps, into, out_of = torch.split(self.choice(x.transpose(1, 2)), [self.rank, 3, 3], -1)
        steps = F.softplus(self.steps.weight @ steps.transpose(1, 2) + self.steps.bias[:, None])
        kept = torch.exp(-self.decay.exp()[None, :, None] * steps[..., None])
        added = steps[..., None] * into[:, None] * x[..., None]
        batch, width, length = x.shape
        state, outputs = torch.zeros(batch, width, self.decay.shape[-1], dtype=x.dtype), []
        for at in range(length):
            state = kept[:, :, at] * state + added[:, :, at]
            outputs.append((state @ out_of[:, at, :, None])[..., 0])
        y = torch.stack(outputs, -1) + x * self.skip[:, None]
        return self.out((y * F.silu(gate)).transpose(1, 2))


def test_the_inner_width_of_a_state_space_goes_and_its_state_stays():
    plan = assert_right(Scan().eval(), torch.rand(2, 5, 6))
    assert (plan.widths["inputs"], plan.widths["conv"]) == ((16, 8), (8, 4))
    assert "6 of 8 channels: is broadcast over channels" in plan.frozen["choice"]


def test_of_an_outer_product_that_with_more_channels_goes():
    model = Net(
        lambda s, x: s.head((s.a(x)[:, :, None] * s.b(x)[:, None]).sum(2)), a=nn.Linear(5, 8), b=nn.Linear(5, 4),
        head=nn.Linear(8, 2),
    ).eval()  # fmt: skip
    plan = assert_right(model, torch.rand(3, 5))
    assert plan.widths["a"] == (8, 4)
    assert plan.frozen["b"].startswith("is broadcast over channels")


def test_a_mask_spread_over_as_many_places_as_there_are_heads_goes_with_them():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.width = 4, 3
            self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
            self.head = nn.Linear(12, 2)

        def forward(self, x):
            batch, length, _ = x.shape
            q, k, v = (f(x).view(batch, length, self.heads, self.width) for f in (self.q, self.k, self.v))
            near = (x @ x.transpose(1, 2) > 0)[:, None].expand(batch, q.shape[2], length, length)
            scores = torch.einsum("bind,bjnd->bnij", q, k)
            y = torch.einsum("bnij,bjnd->bind", torch.where(near, scores, -scores).softmax(-1), v)
            return self.head(y.reshape(batch, length, self.heads * self.width))

    plan = assert_right(Masked().eval(), torch.randn(2, 5, 6))
    assert plan.attributes == {"heads": (4, 2)}


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, (2, 1), ceil_mode=True),
        lambda x: F.max_pool2d(x, (3, 1), stride=(2, 1), padding=(1, 0)),
        lambda x: F.avg_pool2d(x, [2, 1], [2, 1]),
    ],
)
def test_a_window_over_places_alone_leaves_the_channels_beside_it_free(pool):
    model = Net(lambda s, x: s.head(pool(s.a(x)[:, None])[:, 0]), a=nn.Linear(5, 8), head=nn.Linear(8, 2)).eval()
    assert assert_right(model, torch.rand(2, 6, 5)).widths["a"] == (8, 4)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, (2, 3), (2, 1), (0, 1)),
        lambda x: F.avg_pool2d(x, (2, 1), (2, 2)),
        lambda x: F.max_pool2d(x, (3, 3), (1, 1), (1, 1)),
        lambda x: F.adaptive_avg_pool2d(x, (2, 8)),
    ],
)
def test_channels_that_lie_in_a_window_cannot_go_one_by_one(pool):
    model = Net(lambda s, x: s.b(pool(s.a(x)[:, None])[:, 0]), a=nn.Linear(5, 8), b=nn.LazyLinear(2)).eval()
    model(torch.rand(2, 6, 5))
    with pytest.raises(UserError, match="a its channels can only go all at once"):
        plan_pruning(model, torch.rand(2, 6, 5), 0.5)


def _picked(s, x):
    x = F.relu(s.a(x))
    best = s.b(x).max(-1).values.topk(3, dim=1).indices
    return s.head(x.gather(1, best[..., None].repeat(1, 1, x.shape[-1])))


def test_gather_picks_places_and_leaves_channels_where_they_are():
    torch.manual_seed(0)
    model = Net(_picked, a=nn.Linear(8, 12), b=nn.Linear(12, 4), head=nn.Linear(12, 2)).eval()
    assert assert_right(model, torch.rand(2, 6, 8)).widths["a"] == (12, 6)


def test_gather_along_channels_is_refused():
    model = dense(lambda s, x: s.head(s.a(x).gather(-1, torch.tensor([[3, 0, 1, 2, 7, 6, 5, 4]] * 4))))
    _, frozen = groups_of(model, torch.rand(4, 8))
    assert "goes through gather" in frozen["a"]


def test_places_that_are_sampled_leave_channels_where_they_are():
    def body(s, x):
        grid = s.g(x.mean((2, 3))).tanh().view(-1, 3, 4, 2)
        return s.head(F.grid_sample(F.relu(s.a(x)), grid, align_corners=False))

    torch.manual_seed(0)
    model = Net(body, a=nn.Conv2d(3, 8, 3), g=nn.Linear(3, 24), head=nn.Conv2d(8, 2, 1)).eval()
    plan = assert_right(model, torch.rand(2, 3, 6, 6))
    assert plan.widths["a"] == (8, 4)
    assert "says where all channels are sampled" in plan.frozen["g"]


class Deformable(nn.Module):
    """Each head samples its values where an own layer says: deformable attention of one level."""

    def __init__(self, width=12, heads=3, points=2):
        super().__init__()
        self.n_heads, self.d_model, self.points = heads, width, points
        self.value, self.where, self.odds = (
            nn.Linear(6, width),
            nn.Linear(6, heads * points * 2),
            nn.Linear(6, heads * points),
        )
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        n, length, _ = x.shape
        value = self.value(x).view(n, length, self.n_heads, self.d_model // self.n_heads)
        where = self.where(x).tanh().view(n, length, self.n_heads, self.points, 2)
        odds = self.odds(x).view(n, length, self.n_heads, self.points).softmax(-1)
        size = value.shape[-1]
        value = value.permute(0, 2, 3, 1).reshape(n * self.n_heads, size, 3, length // 3)
        sampled = F.grid_sample(value, where.transpose(1, 2).flatten(0, 1), align_corners=False)
        odds = odds.transpose(1, 2).reshape(n * self.n_heads, 1, length, self.points)
        output = (sampled * odds).sum(-1).view(n, self.n_heads * size, length)
        return self.out(output.transpose(1, 2))


def test_heads_of_deformable_attention_go_as_wholes():
    torch.manual_seed(0)
    plan = assert_right(Deformable().eval(), torch.rand(2, 9, 6))
    assert plan.widths["value"] == (12, 8)
    assert plan.widths["where"] == (12, 8)
    assert plan.attributes["n_heads"] == (3, 2)
    assert plan.attributes["d_model"][1] // 2 == 4


class Rows(nn.Module):
    """More rows are learned than are read; ``split`` reads the halves of each by the width of another layer."""

    def __init__(self, split):
        super().__init__()
        self.split = split
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)
        self.rows = nn.Embedding(10, 16 if split else 8)

    def forward(self, x):
        width = F.relu(self.a(x)).shape[-1]
        rows = self.rows.weight[:5]
        if self.split:
            one, other = torch.split(rows, width, dim=1)
            rows = F.relu(one) + other
        return self.head(F.relu(self.a(x) + self.b(x) + rows))


def test_rows_of_a_parameter_that_are_not_read_lose_the_same_channels():
    torch.manual_seed(0)
    model = Rows(split=False).eval()
    plan = assert_right(model, torch.rand(2, 5, 6))
    assert shrink_of(model, plan).rows.weight.shape == (10, 4)


def test_a_parameter_that_is_split_by_a_width_follows_it():
    torch.manual_seed(0)
    model = Rows(split=True).eval()
    plan = assert_right(model, torch.rand(2, 5, 6))
    assert plan.widths["a"] == (8, 4)
    assert shrink_of(model, plan).rows.weight.shape == (10, 8)


def test_heads_that_are_cut_out_of_several_sources_put_together_lose_the_same_positions():
    """Two sources side by side, which a layer has tied since: the heads of D-FINE's neck."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_heads, self.a, self.b, self.c = 2, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            both = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
            other = self.c(both)
            n, length, width = both.shape
            value = both.reshape(n, length, self.n_heads, width // self.n_heads).permute(0, 2, 3, 1)
            value = value.flatten(0, 1).cumsum(-1)
            value = value.view(n, self.n_heads * value.shape[1], length).transpose(1, 2)
            return self.head(F.relu(other + value))

    torch.manual_seed(0)
    plan = assert_right(Two().eval(), torch.rand(2, 5, 6))
    assert plan.widths["a"] == plan.widths["b"] == (8, 4)
    assert plan.attributes == {}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_have_a_width(mode):
    """Its sums meet what a layer gives, as in recommenders."""
    model = net(
        lambda s, x: s.head(F.relu(s.bag(x.abs().long() % 9) * s.a(x))),
        a=nn.Linear(4, 8), bag=nn.EmbeddingBag(9, 8, mode=mode), head=nn.Linear(8, 2),
    )  # fmt: skip
    plan = assert_right(model, torch.rand(3, 4) * 9)
    assert (plan.widths["a"], plan.widths["bag"]) == ((8, 4), (8, 4))
    assert shrink_of(model, plan).bag.embedding_dim == 4


def test_channels_and_places_may_be_parted_at_once():
    """Involution: each group of channels has a kernel of its own, and windows are laid out again in the same view."""

    def body(s, x):
        x = F.relu(s.a(x))
        n, c, h, w = x.shape
        windows = F.unfold(x, 3, padding=1).view(n, s.groups, c // s.groups, 9, h, w)
        kernels = s.kernel(x.mean((2, 3))).view(n, s.groups, 1, 9, 1, 1)
        return s.head((windows * kernels).sum(3).reshape(n, c, h, w).mean((2, 3)))

    model = net(body, a=conv(3, 16, 3), kernel=nn.Linear(16, 36), head=nn.Linear(16, 2))
    model.groups = 4
    assert assert_right(model, torch.rand(2, 3, 8, 8)).widths["a"] == (16, 8)


@pytest.mark.parametrize("make", ["new_empty", "new_zeros"])
def test_a_tensor_that_is_filled_part_by_part_is_what_is_written_there(make):
    """Keys of multi-head latent attention: features of each head, then those that all heads share."""

    def body(s, x):
        n, length, _ = x.shape
        q = s.q(x).view(n, length, -1, s.own + s.shared).transpose(1, 2)
        k = s.k(x).view(n, length, -1, s.own).transpose(1, 2)
        v = s.v(x).view(n, length, -1, s.own).transpose(1, 2)
        keys = getattr(k, make)((*k.shape[:-1], s.own + s.shared))
        keys[..., : s.own] = k
        keys[..., s.own :].copy_(s.c(x).unsqueeze(1).expand(-1, k.shape[1], -1, -1))
        y = (q @ keys.mT).softmax(-1) @ v
        return s.head(s.p(y.transpose(1, 2).reshape(n, length, -1)))

    layers = {"q": nn.Linear(8, 24), "k": nn.Linear(8, 16), "v": nn.Linear(8, 16), "c": nn.Linear(8, 2)}
    model = net(body, **layers, p=nn.Linear(16, 8), head=nn.Linear(8, 2))
    model.own, model.shared = 4, 2
    plan = assert_right(model, torch.rand(2, 5, 8))
    assert {name: plan.widths[name] for name in "qkvcp"} == {
        "q": (24, 12), "k": (16, 8), "v": (16, 8), "c": (2, 2), "p": (8, 4),
    }  # fmt: skip
