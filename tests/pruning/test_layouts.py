import pytest
import torch
from torch import nn

from lighten import UserError, mask_
from lighten.pruning.layouts import layouts_of
from lighten.pruning.live import live_cut_of
from lighten.pruning.live_cut import cut_live_
from lighten.pruning.planner import make_plan, trace_structure
from lighten.pruning.settings import Settings


def cut(model, x):
    structure = trace_structure(model, ((x,), {}))
    plan = make_plan(structure, model, Settings(0.5))
    mask_(model, plan)
    return plan, cut_live_(model, plan)


def features(model, names, x):
    found = {}
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda _, __, y, n=n: found.setdefault(n, y.detach()))
        for n in names
    ]  # fmt: skip
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_features_are_laid_out_as_masks_have_them():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU()),
        nn.Flatten(), nn.Linear(96, 4),
    ).eval()  # fmt: skip
    x, names = torch.randn(2, 3, 8, 8), ["0", "0.0", "1", "3"]
    plan = make_plan(trace_structure(model, ((x,), {})), model, Settings(0.5))
    mask_(model, plan)
    expected = features(model, names, x)
    cut_live_(model, plan)
    found, layouts = features(model, names, x), layouts_of(model, live_cut_of(model), names)
    assert set(layouts) == {"0", "0.0", "1"}
    for name, layout in layouts.items():
        torch.testing.assert_close(layout(found[name]), expected[name])


def test_gradients_pass_to_the_channels_that_are_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 4)
    cut(model, x)
    layout = layouts_of(model, live_cut_of(model), ["0"])["0"]
    layout(model[0](x)).sum().backward()
    assert torch.count_nonzero(model[0].bias.grad) == 4


def test_channels_that_cannot_be_followed_are_named():
    class Summed(nn.Module):
        """Puts out channels in an order of its own."""

        def __init__(self):
            super().__init__()
            self.turn = nn.Identity()

        def forward(self, x):
            return self.turn(x.flip(1)).flip(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Summed(), nn.Linear(8, 2)).eval()
    cut(model, torch.randn(2, 4))
    with pytest.raises(UserError, match=r"'1.turn' has 4 channels after a cut, 8 before"):
        layouts_of(model, live_cut_of(model), ["1.turn"])
