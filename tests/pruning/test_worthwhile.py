import torch
from torch import nn

from lighten import mask_
from lighten.models import build_model
from lighten.pruning.live_cut import cut_live_
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.settings import Settings
from lighten.pruning.worthwhile import worthwhile
from lighten.utils.layout import is_narrow


def widths(plan, layer):
    return next(
        (c.size - len(c.removed) for c in plan.cuts for s in c.slots if s.tensor == f"{layer}.weight" and s.dim == 0),
        None,
    )


def planned(model, x, ramp, after=None):
    structure = trace_structure(model, ((x,), {}))
    return structure, make_plan(structure, model, Settings(0.5), ramp=ramp, after=after, exact=True)


def test_wide_layers_are_cut_in_eights_and_others_as_planned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
    structure, plan = planned(model, torch.randn(2, 8), 0.4)
    assert (widths(plan, "0"), widths(plan, "2")) == (51, 16)
    found = worthwhile(structure, model, plan)
    assert (widths(found, "0"), widths(found, "2")) == (56, 16)


def test_what_is_cut_stays_cut_and_all_of_it_was_to_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    structure, plan = planned(model, torch.randn(2, 8), 0.4)
    first = worthwhile(structure, model, plan)
    mask_(model, plan)
    cut_live_(model, first)
    more = make_plan(structure, nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), Settings(0.5), after=plan)
    second = worthwhile(structure, model, more)
    gone = [
        {i for c in p.cuts for s in c.slots if s.tensor == "0.weight" for i in c.removed} for p in (first, second, more)
    ]
    assert gone[0] < gone[1] <= gone[2]
    assert len(gone[1]) == 32


def test_no_order_in_memory_is_lost_on_the_way():
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=16, blocks=1)
    model = model.to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 1, 8, 8)
    structure, plan = planned(model, x, 0.6)
    assert widths(plan, "conv1") == 11
    found = worthwhile(structure, model, plan)
    assert widths(found, "conv1") is None  # a strided 1x1 convolution reads it: it stays at 16
    assert widths(found, "stage3.0.conv1") == 48
    mask_(model, plan)
    cut_live_(model, found)
    assert not is_narrow(model)
    narrow = build_model("resnet20", num_classes=3, input_shape=(1, 8, 8), width=8, blocks=1).eval()
    structure, plan = planned(narrow, x, 0.6)
    assert widths(worthwhile(structure, narrow, plan), "conv1") == widths(plan, "conv1") == 6
