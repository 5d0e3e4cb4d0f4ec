"""Networks in a line, and the proof that what a plan cuts out of one is what masking leaves of it."""

import torch
import torch.nn.functional as F
from torch import nn

from lighten.pruning import mask_, plan_pruning, shrink
from lighten.pruning.groups import find_groups
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


def groups_of(model, *inputs, **options):
    structure = find_groups(model, (inputs, {}), **options)
    return {group.name: (group.layers, group.width) for group in structure.groups}, structure.frozen


def net(body, **layers):
    return Net(body, **layers).eval()


class FiveLayers(nn.Module):
    """Five layers; ``body`` says what happens between the first and the second."""

    def __init__(self, body, inputs=8):
        super().__init__()
        self.body = body
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(inputs, 6, 3, padding=1)
        self.c, self.d, self.head = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(F.relu(self.d(F.relu(self.c(F.relu(self.b(self.body(self.a(x)))))))))
