import re

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from lighten.errors import UserError
from lighten.pruning.groups import find_groups


def groups_of(model, *inputs, **options):
    structure = find_groups(model, (inputs, {}), **options)
    return {group.name: (group.layers, group.width) for group in structure.groups}, structure.frozen


EXPECTED = {
    "residual": {
        "stem.0": (("stem.0", "a2.0"), 8),
        "a1.0": (("a1.0",), 8),
        "shortcut.0": (("shortcut.0", "b2.0"), 16),
        "b1.0": (("b1.0",), 16),
    },
    "residual-pad": {"stem.0": (("stem.0", "a2.0", "b2.0"), 8), "a1.0": (("a1.0",), 8), "b1.0": (("b1.0",), 16)},
    "concat": {"a.0": (("a.0",), 6), "b.0": (("b.0",), 4), "c.0": (("c.0",), 5)},
    "mobile": {
        "stem.0": (("stem.0", "project.0"), 6),
        "expand.0": (("expand.0", "depthwise.0", "excite"), 12),
        "squeeze": (("squeeze",), 4),
    },
    "grouped": {"a.0": (("a.0",), 4), "b.0": (("b.0", "c"), 6)},
    "flat": {"conv": (("conv",), 6), "a": (("a",), 10)},
    "gated": {"a": (("a",), 6), "b": (("b",), 8)},
    "unet": {"down.0": (("down.0",), 6), "deep.0": (("deep.0",), 10), "up": (("up",), 8), "mix.0": (("mix.0",), 7)},
    "shared": {"stem.0": (("stem.0", "twice"), 6)},
    "reshuffled": {"a": (("a",), 4), "b": (("b",), 6)},
    "transformer": {"q": (("q", "k", "v"), 2), "up": (("up",), 16)},
    "mlp": {"1": (("1",), 12), "4": (("4",), 9)},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_ties_exactly_these_layers(name, build, images):
    found, frozen = groups_of(build(name), images)
    assert found == EXPECTED[name]
    assert list(frozen.values()).count("is the network's output") == 1


def test_positions_of_a_small_residual_net(build, images):
    """Every place where a channel of the stem lives, by hand."""
    structure = find_groups(build("residual"), ((images,), {}))
    stem = next(group for group in structure.groups if group.name == "stem.0")
    places = {(slot.tensor, slot.dim, slot.role) for slot in stem.positions}
    norms = {(f"{bn}.{t}", 0, r) for bn in ("stem.1", "a2.1") for t, r in (("weight", "norm"), ("bias", "shift"))}
    statistics = {(f"{bn}.{t}", 0, "statistic") for bn in ("stem.1", "a2.1") for t in ("running_mean", "running_var")}
    assert places == norms | statistics | {
        ("stem.0.weight", 0, "filter"),
        ("a2.0.weight", 0, "filter"),
        ("a1.0.weight", 1, "input"),
        ("b1.0.weight", 1, "input"),
        ("shortcut.0.weight", 1, "input"),
    }
    assert all(index.tolist() == [[i] for i in range(8)] for index in stem.positions.values())


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


def test_filters_of_tied_layers_stand_side_by_side(build, images):
    model = build("residual")
    stem = find_groups(model, ((images,), {})).groups[0]
    expected = torch.cat([model.stem[0].weight.flatten(1), model.a2[0].weight.flatten(1)], dim=1)
    assert torch.equal(stem.filters(dict(model.named_parameters())), expected)


@pytest.mark.parametrize("name", ["residual", "concat", "mobile", "flat", "unet"])
def test_ties_what_torch_pruning_ties(name, build, images):
    model = build(name)
    names = {module: name for name, module in model.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(model, images)
    outputs = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
    transposed = torch_pruning.function.PrunerBox[torch_pruning.ops.OPTYPE.CONV].prune_out_channels
    depthwise = torch_pruning.function.PrunerBox[torch_pruning.ops.OPTYPE.DEPTHWISE_CONV].prune_out_channels
    theirs = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear, nn.ConvTranspose2d]):
        tied = {
            names[item.dep.target.module]
            for item in group
            if item.dep.handler in (*outputs, transposed, depthwise) and item.dep.target.module in names
        }
        theirs.add(frozenset(tied - {"head"}))
    found, _ = groups_of(build(name), images)
    assert {frozenset(layers) for layers, _ in found.values()} == theirs - {frozenset()}


class Net(nn.Module):
    """A module of these layers whose forward is a function of it and the input."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def net(body, **layers):
    return Net(body, **layers).eval()


conv = nn.Conv2d


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (
            net(lambda s, x: s.head(torch.softmax(s.a(x), 1)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"softmax mixes its channels \(test_groups.py:\d+\)",
        ),
        (
            net(lambda s, x: s.head(s.a(x) - s.a(x).mean(1, keepdim=True)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"mean mixes its channels",
        ),
        (
            net(lambda s, x: s.head(F.group_norm(s.a(x), 2)), a=conv(3, 4, 1), head=conv(4, 2, 1)),
            "a",
            r"goes through group_norm \(test_groups.py:\d+\)",
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
                a=nn.utils.parametrizations.weight_norm(conv(3, 4, 1)),
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


def test_tied_weights_are_one_parameter(images):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = net(lambda s, x: s.head(F.relu(s.second(F.relu(s.first(s.stem(x)))))), stem=nn.Linear(8, 3))
    model.first, model.second, model.head = first, second, nn.Linear(3, 2)
    structure = find_groups(model, ((images,), {}))
    tied = {slot.tensor for slot in structure.groups[0].positions}
    assert {"first.weight", "first.bias", "second.bias"} <= tied
    assert "second.weight" not in tied


def test_excluded_layers_stay_with_all_that_is_tied_to_them(build, images):
    found, frozen = groups_of(build("residual"), images, exclude=["shortcut", "a1.*"])
    assert set(found) == {"stem.0", "b1.0"}
    assert {layer for layer, why in frozen.items() if why == "is excluded"} == {"shortcut.0", "b2.0", "a1.0"}


def test_an_exclusion_that_matches_nothing_is_refused(build, images):
    with pytest.raises(UserError, match=r"exclude='shortcat' matches no layer; did you mean"):
        groups_of(build("residual"), images, exclude=["shortcat"])


def test_a_wrapped_model_is_refused(build, images):
    with pytest.raises(UserError, match="wrapped in DataParallel"):
        groups_of(nn.DataParallel(build("flat")), images)


def test_a_forward_that_cannot_be_traced_is_named(images):
    inner = net(lambda s, x: x * len(x.sum().item() * [1]))
    model = nn.Sequential(conv(3, 4, 1), inner)
    with pytest.raises(UserError, match=r"torch.export cannot trace 1 \(Net\) at test_groups.py:\d+: "):
        groups_of(model, images)


def test_the_model_is_left_as_found(build, images):
    model = build("mobile")
    model.train()
    model.expand.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    groups_of(model, images)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
