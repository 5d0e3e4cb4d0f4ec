import copy

import pytest
import torch
from live_fit import trained
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, RMSprop
from zoo import ZOO

from lighten import UserError, shrink
from lighten.models import build_model
from lighten.pruning.live_cut import check_holders, cut_live_
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.settings import Settings

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=1e-3),
    "nesterov, weight decay": lambda p: SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw, amsgrad": lambda p: AdamW(p, lr=1e-4, weight_decay=0.1, amsgrad=True),
    "adam, foreach": lambda p: AdamW(p, lr=1e-4, foreach=True),
    "adam, fused": lambda p: AdamW(p, lr=1e-4, fused=True),
    "rmsprop": lambda p: RMSprop(p, lr=1e-5, momentum=0.9, centered=True),
}


def compared(model, example, optimizer, **options):
    """Return the largest difference of both ends, by masks and by cuts; and the share of parameters that is left."""
    masked, _, one = trained(model, example, optimizer, live=False, **options)
    cut, made, other = trained(model, example, optimizer, live=True, **options)
    assert one.plan.hash == other.plan.hash
    small, expected = shrink(cut, other.plan), shrink(masked, one.plan)
    shapes = [[tuple(value.shape) for value in m.state_dict().values()] for m in (cut, small, expected)]
    assert shapes[0] == shapes[1] == shapes[2]
    for parameter, state in made.state.items():
        assert all(value.shape == parameter.shape for value in state.values() if value.ndim)
    pairs = zip(small.state_dict().values(), expected.state_dict().values(), strict=True)
    gap = max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())
    return gap, sum(p.numel() for p in cut.parameters()) / sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_with_the_weights_of_masks(name):
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=8, blocks=1)
    gap, left = compared(model, torch.randn(16, 1, 8, 8), OPTIMIZERS[name])
    assert gap <= 1e-6
    assert left < 0.3


@pytest.mark.parametrize("settings", [
    {"score": "taylor"}, {"score": "auto", "scope": "global"}, {"target": "macs"}, {"align": 4}, {"clip": 0.01},
])  # fmt: skip
def test_every_way_to_choose_does(settings):
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=8, blocks=1)
    gap, left = compared(model, torch.randn(16, 1, 8, 8), OPTIMIZERS["nesterov, weight decay"], **settings)
    assert gap <= 1e-6
    assert left < 0.7


@pytest.mark.filterwarnings("ignore:.*cannot say the widths of the cut model")
@pytest.mark.parametrize("name", [
    "convnext", "distilbert", "unet", "norms", "encoder", "mixer", "flat", "shared", "recurrent",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "gpt2", "densenet", "shufflenet")),
])  # fmt: skip
def test_every_kind_of_network_does(name):
    torch.manual_seed(0)
    make, example = ZOO[name]
    gap, left = compared(make(), example(), lambda p: SGD(p, lr=1e-4, momentum=0.9, weight_decay=1e-3))
    assert gap <= 1e-6
    assert left < 1.0


def test_factored_moments_keep_what_has_no_such_dimension():
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=8, blocks=1)
    cut, optimizer, _ = trained(model, torch.randn(16, 1, 8, 8), lambda p: Adafactor(p, lr=1e-4), live=True)
    weight = cut.stage1[0].conv1.weight
    state = optimizer.state[weight]
    assert state["row_var"].shape == (4, 4, 3, 1)
    assert state["col_var"].shape == (4, 4, 1, 3)


def test_a_graph_that_somebody_holds_does_not_remember_the_old_shape():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = trace_structure(model, ((torch.randn(2, 4),), {}))
    held, grads = model(torch.randn(2, 4)), []
    model[0].weight.register_hook(lambda grad: grads.append(tuple(grad.shape)))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: grads.append(tuple(p.shape)))
    cut_live_(model, make_plan(structure, model, Settings(0.5)))
    model(torch.randn(2, 4)).sum().backward()
    assert grads == [(4, 4), (4, 4)]
    assert held.grad_fn is not None


def test_who_holds_a_view_as_an_attribute_is_named():
    """In the module that is pruned itself; a weight that a hook computes anew is none."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(8, 2)))
    check_holders(model, model, {"0.weight", "2.weight_orig"})
    model[1].own = model[0].weight[:2]
    with pytest.raises(UserError, match=r"1.own holds the numbers of the parameter '0.weight'"):
        check_holders(model, model, {"0.weight", "2.weight_orig"})


def test_who_holds_a_view_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    check_holders(model, model, {"0.weight", "0.bias"})
    model[1].own = {"rows": [model[0].weight]}  # the parameter itself stays right
    check_holders(model, model, {"0.weight", "0.bias"})
    model[1].other = {"rows": [model[0].weight.data[:2]]}
    with pytest.raises(UserError, match=r"1.other\['rows'\]\[0\] holds the numbers of the parameter '0.weight'"):
        check_holders(model, model, {"0.weight", "0.bias"})


def test_state_of_its_own_for_each_channel_is_named():
    class Own(nn.Linear):
        def cut_channels_(self, tensor, dim, kept):
            pass

    model = nn.Sequential(Own(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(UserError, match="'0' keeps state of its own for each channel"):
        check_holders(model, model, {"0.weight"})


def test_copies_of_a_cut_network_are_cut_networks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = trace_structure(model, ((torch.randn(2, 4),), {}))
    plan = make_plan(structure, model, Settings(0.5))
    expected = shrink(model, plan)
    cut_live_(model, plan)
    assert torch.equal(shrink(copy.deepcopy(model), plan)[0].weight, expected[0].weight)


def test_norms_leave_out_what_stays_masked_after_a_cut():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 40), nn.LayerNorm(40), nn.Linear(40, 3)
    )
    gap, left = compared(model, torch.randn(16, 8), lambda p: SGD(p, lr=1e-2, momentum=0.9))
    assert gap <= 1e-6  # wide layers are cut in eights on the way
    assert left < 0.6
