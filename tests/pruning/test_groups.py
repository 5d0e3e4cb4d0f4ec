import pytest
import torch
import torch_pruning
from pruning_nets import groups_of
from torch import nn

from lighten.errors import UserError
from lighten.pruning.groups import find_groups

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


conv = nn.Conv2d


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
