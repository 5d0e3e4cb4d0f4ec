"""The graph that LiteRT and ExecuTorch read: what numbers alone make is stored, and nothing else."""

import pytest
import torch
from torch import nn

from lighten.delivery.export.graph import trace


class Places(nn.Module):
    """Adds sines of places, as transformers make them in their forward, in front of a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 800)

    def forward(self, x):
        omega = 1.0 / 100.0 ** (torch.arange(4) / 4)
        rows, columns = torch.meshgrid(torch.arange(x.shape[1]), torch.arange(2), indexing="ij")
        places = (rows + columns)[:, :1] * omega
        return self.layer(x + torch.cat([places.sin(), places.cos()], 1))


class Filled(nn.Module):
    """Writes the input into zeros, through a view, or one of several."""

    def __init__(self, view):
        super().__init__()
        self.view = view

    def forward(self, x):
        held = torch.zeros(2, 3)
        self.view(held).copy_(x[:, :1])
        return held + torch.ones(3)


class Large(nn.Module):
    """Makes a large tensor of a small one, beside few weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) + (torch.arange(3.0) * 2).repeat(2, 500).sin().sum(1, keepdim=True)


class Weighs(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return x @ self.weight.abs().T


def traced(net, x):
    graph = trace(net.eval(), (x,))
    for other in (x, x + 1, x):
        assert torch.equal(graph(other), net(other))
    return graph, [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_what_numbers_make_is_stored():
    _, calls = traced(Places(), torch.randn(2, 5, 8))
    assert calls == ["aten.add.Tensor", "aten.linear.default"]


@pytest.mark.parametrize("view", [lambda held: held[:, :1], lambda held: held.split(1, 1)[0]])
def test_what_is_written_into_is_made_again_in_each_call(view):
    graph, calls = traced(Filled(view), torch.randn(2, 3))
    assert "aten.zeros.default" in calls
    assert "aten.ones.default" not in calls
    assert [tuple(value.shape) for value in graph.state_dict().values()] == [(3,)]


def test_what_takes_more_room_stays_computed():
    graph, calls = traced(Large(), torch.randn(2, 3))
    assert "aten.repeat.default" in calls
    assert {"aten.arange.default", "aten.mul.Tensor"}.isdisjoint(calls)
    assert sum(value.numel() for value in graph.state_dict().values()) == 3 * 3 + 3 + 3


def test_what_weights_make_stays_computed():
    graph, calls = traced(Weighs(), torch.randn(2, 3))
    assert "aten.abs.default" in calls
    assert list(graph.state_dict()) == ["weight"]


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_draws_are_no_constants(draw):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + draw(3)

    graph = trace(Noisy().eval(), (torch.ones(2, 3),))
    assert not torch.equal(graph(torch.ones(2, 3)), graph(torch.ones(2, 3)))
