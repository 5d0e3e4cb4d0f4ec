"""Tracing: views of parameters against real ones, what a model keeps, where an error arose."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import assert_right, dense, groups_of, net
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning, shrink, trace
from lighten.pruning.groups import find_groups
from lighten.pruning.rules import follow
from lighten.pruning.trace import Tracer, export, first_line, location, module_of
from lighten.pruning.weights import Weight, layer_of
from lighten.utils.clone import clone

conv = nn.Conv2d


def test_a_model_may_keep_what_its_forward_computed():
    def body(s, x):
        s.last = F.relu(s.a(x))
        return s.head(s.last)

    model, x = dense(body), torch.randn(4, 8)
    assert_right(model, x)
    assert not hasattr(model, "last")  # tracing leaves nothing of its own behind
    model(x)
    assert_right(model, x)


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


def test_tied_weights_are_one_parameter(images):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = net(lambda s, x: s.head(F.relu(s.second(F.relu(s.first(s.stem(x)))))), stem=nn.Linear(8, 3))
    model.first, model.second, model.head = first, second, nn.Linear(3, 2)
    structure = find_groups(model, ((images,), {}))
    tied = {slot.tensor for slot in structure.groups[0].positions}
    assert {"first.weight", "first.bias", "second.bias"} <= tied
    assert "second.weight" not in tied


def test_a_forward_that_cannot_be_traced_is_named(images):
    inner = net(lambda s, x: x * len(x.sum().item() * [1]))
    model = nn.Sequential(conv(3, 4, 1), inner)
    with pytest.raises(UserError, match=r"torch.export cannot trace 1 \(Net\) at test_trace.py:\d+: "):
        groups_of(model, images)


VIEWS = {
    "itself": ((3, 4), lambda w: w.view(3, 4)),
    "transposed": ((3, 4), lambda w: w.t()),
    "permuted": ((2, 3, 4), lambda w: w.permute(2, 0, 1)),
    "picked": ((3, 4), lambda w: w[1]),
    "picked along": ((3, 4), lambda w: w[:, 2]),
    "a stretch": ((5, 4), lambda w: w[1:4]),
    "a stretch along": ((2, 6, 3), lambda w: w[:, 2:5]),
    "a stretch, transposed": ((5, 4), lambda w: w[:, 1:3].t()),
    "spatial ones gone": ((3, 4, 1, 1), lambda w: w[:, :, 0, 0]),
    "a new dimension": ((3, 4), lambda w: w[:, None]),
    "thirds": ((6, 4), lambda w: w.chunk(3)),
    "one by one": ((3, 4), lambda w: w.unbind(0)),
}


@pytest.mark.parametrize(("shape", "view"), VIEWS.values(), ids=VIEWS)
def test_a_view_is_where_the_real_one_is_and_follows_the_parameters_dimensions(shape, view):
    base = torch.arange(torch.Size(shape).numel()).view(shape)
    found, expected = Weight.of("w", shape).viewed(view), view(base)
    found, expected = ([found], [expected]) if isinstance(found, Weight) else (found, expected)
    assert len(found) == len(expected)
    for ours, real in zip(found, expected, strict=True):
        assert torch.equal(base.as_strided(ours.shape, ours.strides, ours.offset), real)
        for dim, size in enumerate(real.shape):
            if size > 1:
                along, start = ours.stretch(dim)
                place = torch.unravel_index(real, shape)[along].movedim(dim, -1)
                assert torch.equal(place, (start + torch.arange(size)).expand(place.shape))


@pytest.mark.parametrize(
    "function",
    [torch.flatten, lambda w: w.view(2, 6), lambda w: w[:, ::2], lambda w: w * 2, lambda w: torch.cat([w, w])],
    ids=["two dimensions as one", "rows torn", "every second", "other numbers", "a copy"],
)
def test_what_follows_no_dimension_is_no_view(function):
    assert Weight.of("w", (3, 4)).viewed(function) is None


def traced(model, x):
    exported, reads = export(model, ((x,), {}))
    return follow(Tracer(exported, model, reads))


def test_stretches_of_one_parameter_are_one_axis():
    def body(s, x):
        return s.head(F.linear(x, s.weight[:2]) * 2), s.other(F.linear(x, s.weight[2:]))

    model = net(body, head=nn.Linear(2, 3), other=nn.Linear(4, 3))
    model.weight = nn.Parameter(torch.randn(6, 5))
    tracer = traced(model, torch.zeros(1, 5))
    rows = tracer.labels.find(tracer.axes["weight", 0].labels)
    assert len(rows.unique()) == 6
    read = torch.cat([tracer.axes[f"{name}.weight", 1].labels for name in ("head", "other")])
    assert torch.equal(tracer.labels.find(read), rows)
    assert [tracer.axes[key].role for key in (("weight", 0), ("head.weight", 1))] == ["filter", "input"]


def test_layers_that_one_weight_reads_are_tied():
    model = net(lambda s, x: (s.head(s.a(x)), s.head(s.b(x))), a=nn.Linear(5, 4), b=nn.Linear(5, 4))
    model.head = nn.Linear(4, 3)
    tracer = traced(model, torch.zeros(1, 5))
    a, b = (tracer.labels.find(tracer.axes[f"{name}.weight", 0].labels) for name in "ab")
    assert torch.equal(a, b)
    assert len(a.unique()) == 4


def scaled(shape, buffer=False):
    model = net(lambda s, x: s.head(s.a(x) * s.scale), a=nn.Linear(5, 4), head=nn.Linear(4, 3))
    scale = torch.rand(shape)
    if buffer:
        model.register_buffer("scale", scale)
    else:
        model.scale = nn.Parameter(scale)
    return model


@pytest.mark.parametrize(("buffer", "role"), [(False, "scale"), (True, "statistic")])
def test_what_is_used_element_by_element_is_an_axis_of_its_channels(buffer, role):
    tracer = traced(scaled((1, 4), buffer), torch.zeros(2, 5))
    (axis,) = [axis for (name, _), axis in tracer.axes.items() if name == "scale"]
    assert ("scale", 1) in tracer.axes
    assert axis.role == role
    assert torch.equal(tracer.labels.find(axis.labels), tracer.labels.find(tracer.axes["a.weight", 0].labels))
    assert len(tracer.labels.find(axis.labels).unique()) == 4


def test_a_parameter_too_large_to_follow_freezes_what_it_meets(monkeypatch):
    monkeypatch.setattr(trace, "MAX_ELEMENTS", 3)
    tracer = traced(scaled((1, 4)), torch.zeros(2, 5))
    why = {tracer.labels.reasons().get(int(label)) for label in tracer.labels.find(tracer.axes["a.weight", 0].labels)}
    assert why == {"scale is used whole and is too large to follow"}


def test_a_layer_is_named_by_its_weight_or_bias_and_an_own_parameter_by_itself():
    names = ["layer1.0.weight", "layer1.0.bias", "layer1.0.scale", "weight", "scale"]
    assert [layer_of(name) for name in names] == ["layer1.0", "layer1.0", "layer1.0.scale", "weight", "scale"]


class Lines(nn.Module):
    """Two operators, each in a line of its own."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(5, 4))

    def forward(self, x):
        x = self.block(x)
        return x.exp()


def test_a_node_knows_its_line_and_its_module():
    nodes = {node.name: node for node in export(Lines(), ((torch.zeros(1, 5),), {}))[0].graph.nodes}
    line = Lines.forward.__code__.co_firstlineno
    assert location(nodes["linear"]) == f"test_trace.py:{line + 1} in block.0"
    assert module_of(nodes["linear"]) == "block.0"
    assert location(nodes["exp"]) == f"test_trace.py:{line + 2}"
    assert location(nodes["output"]) == "in the forward"


def test_an_error_without_a_message_is_named_by_its_type():
    assert first_line(ValueError("\nfirst\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"


def test_tracing_keeps_the_state_of_random_numbers_and_gradients():
    model = net(lambda s, x: s.a(x) + torch.rand(4), a=nn.Linear(5, 4))
    before = torch.get_rng_state()
    export(model, ((torch.zeros(1, 5),), {}))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
