"""Where the sizes come from that a traced forward is given."""

import pytest
import torch
from torch import nn

from lighten.pruning.tags import Formula, Tagged, tagged

A = Tagged.of(6, Formula("a"))
B = Tagged.of(4, Formula("b"))


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a + b,
        lambda a, b: a - 2,
        lambda a, b: 20 - a,
        lambda a, b: 3 * a * b,
        lambda a, b: a // b,
        lambda a, b: 24 // a,
        lambda a, b: -a,
        lambda a, b: (a + b) // 2 * b,
    ],
)
def test_what_is_computed_from_tagged_integers_can_be_computed_again(compute):
    result = compute(A, B)
    assert type(result) is Tagged
    assert int(result) == compute(6, 4)
    for a, b in ((6, 4), (3, 2), (12, 1)):
        assert result.formula.value({"a": a, "b": b}) == compute(a, b)


def test_a_tagged_integer_is_an_integer():
    assert A == 6 and hash(A) == hash(6) and {6: "six"}[A] == "six" and [*range(A)] == [*range(6)]  # noqa: PT018
    assert A == 6.0 and A != 5.5 and not A != 6.0 and A != "6"  # noqa: PT018, SIM202
    ids = torch.tensor([6, 7])
    assert (ids == A).tolist() == (A == ids).tolist() == [True, False]  # noqa: SIM300
    assert (A != ids).tolist() == [False, True]  # noqa: SIM300
    assert type(A / 2) is float
    assert A**0.5 == 6**0.5
    assert f"{A}" == "6"
    assert (A // Tagged.of(4, Formula("b"))).formula.value({"a": 1, "b": 0}) is None


class Options:
    """What a config is: plain attributes."""

    def __init__(self):
        self.heads, self.name = 2, "options"


class Reader(nn.Module):
    """Reads its own integers, those of a list, of a config, and of shapes."""

    def __init__(self, forward):
        super().__init__()
        self.heads, self.sizes, self.options, self.flag = 2, (3, 5), Options(), True
        self.inner = nn.Linear(8, 8)
        self.reads = forward

    def forward(self, x):
        return self.reads(self, self.inner(x))


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, y: y.view(2, m.heads, 4), [("heads", "size", 1)]),
        (lambda m, y: y.reshape((2, m.options.heads, -1)), [("options.heads", "size", 1)]),
        (lambda m, y: y.reshape(2, -1, y.shape[1] // m.heads), [("a size // heads", "size", 2)]),
        (lambda m, y: y.unflatten(-1, (m.heads, 4)), [("heads", "size", 1)]),
        (lambda m, y: y.split(m.sizes, 1)[0], [("sizes.0", "part", 0), ("sizes.1", "part", 1)]),
        (lambda m, y: y.split(2 * m.heads, dim=1)[1], [("2 * heads", "part", 0)]),
        (lambda m, y: y[:, m.sizes[0] :], [("sizes.0", "bound", 0)]),
        (lambda m, y: y[..., : -m.heads], [("0 - heads", "bound", 0)]),
        (lambda m, y: y.narrow(1, 0, m.sizes[1]), [("sizes.1", "size", 1)]),
        (lambda m, y: nn.functional.group_norm(y, m.heads), [("heads", "groups", 0)]),
        (lambda m, y: nn.functional.layer_norm(y, (y.size(-1),)), [("a size", "size", -1)]),
        (lambda m, y: y.new_zeros(2, 4 * m.heads) + y, [("4 * heads", "size", 1)]),
        (lambda m, y: y * m.heads**0.5 if m.flag else y, []),
    ],
)
def test_an_operator_notes_the_sizes_that_it_is_given(forward, expected):
    model = Reader(forward)
    before = {key: vars(model)[key] for key in ("heads", "sizes", "options")}
    with tagged(model) as reads, torch.fx.traceback.preserve_node_meta():
        graph = torch.export.export(model, (torch.zeros(2, 8),), strict=False).graph
    found = {(str(read.formula), read.kind, read.index) for node in graph.nodes for read in reads.of(node)}
    assert found == set(expected)
    assert reads.values == {"heads": 2, "sizes.0": 3, "sizes.1": 5, "options.heads": 2}
    assert all(vars(model)[key] is value for key, value in before.items())
    assert type(model.heads) is int
    assert type(model.options.heads) is int
