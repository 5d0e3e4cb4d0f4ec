"""Networks that nobody drew: whatever they tie together, masked and shrunk agree."""

import copy

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lighten.errors import UserError
from lighten.pruning import mask_, plan_pruning, shrink

KINDS = (
    "conv", "residual", "concat", "depthwise", "grouped", "norm", "gate", "split", "strided", "padded", "group norm",
    "layer norm", "attention", "shuffle", "transposed",
)  # fmt: skip


KEEPING = ("residual", "norm", "gate", "group norm", "layer norm", "attention", "shuffle")
"""Kinds that leave the number of channels as it is."""


class Places(nn.Module):
    """A layer over the channels of each place."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


class Heads(nn.Module):
    """Attention between places, in two heads of ``wide`` features."""

    def __init__(self, width, wide):
        super().__init__()
        self.wide, self.qkv, self.out = wide, nn.Linear(width, 6 * wide), nn.Linear(2 * wide, width)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, -1, self.wide)).transpose(1, 3).unbind(2)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(x)


class Random(nn.Module):
    """A chain of steps, each on all channels that the one before left."""

    def __init__(self, steps, width, flat):
        super().__init__()
        self.stem, self.steps, self.flat = nn.Conv2d(3, width, 3, padding=1), steps, flat
        self.layers = nn.ModuleList()
        for kind, wide in steps:
            width = self._add(kind, width, wide)
        self.head = nn.LazyLinear(3)

    def _add(self, kind, width, wide):
        layer = nn.Identity()
        if kind in ("conv", "concat", "strided"):
            layer = nn.Conv2d(width, wide, 3, 2 if kind == "strided" else 1, padding=1)
        elif kind == "residual":
            layer = nn.Sequential(nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, width, 1))
        elif kind == "depthwise":
            layer, wide = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), 2 * width
        elif kind == "grouped" and width % 2 == 0:
            layer, wide = nn.Conv2d(width, 2 * wide, 3, padding=1, groups=2), 2 * wide
        elif kind == "norm":
            layer = nn.BatchNorm2d(width)
        elif kind == "group norm" and width % 2 == 0:
            layer = nn.GroupNorm(2, width)
        elif kind == "layer norm":
            layer = Places(nn.LayerNorm(width))
        elif kind == "attention":
            layer = Heads(width, wide)
        elif kind == "transposed":
            layer = nn.ConvTranspose2d(width, wide, 3, padding=1)
        elif kind == "gate":
            layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.layers.append(layer)
        after = {"concat": width + wide, "padded": width + 2, "split": width // 2 if width % 2 == 0 else width}
        kept = kind in KEEPING or (kind == "grouped" and isinstance(layer, nn.Identity))
        return after.get(kind, width if kept else wide)

    def forward(self, x):
        x = self.stem(x)
        for (kind, _), layer in zip(self.steps, self.layers, strict=True):
            if kind == "residual":
                x = x + layer(x)
            elif kind == "concat":
                x = torch.cat([layer(x), x], 1)
            elif kind == "gate":
                x = x * layer(x)
            elif kind == "split" and x.shape[1] % 2 == 0:
                a, b = x.chunk(2, 1)
                x = a * torch.tanh(b)
            elif kind == "shuffle" and x.shape[1] % 2 == 0:
                x = torch.tanh(x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
            elif kind in ("group norm", "layer norm", "attention"):
                x = layer(x)
            elif kind == "padded":
                x = F.pad(x, (0, 0, 0, 0, 1, 1))
            else:
                x = F.relu(layer(x))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


networks = st.tuples(
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([2, 3, 4, 6])), min_size=1, max_size=5),
    st.sampled_from([2, 4, 6]),
    st.booleans(),
)


@settings(
    max_examples=60, phases=[Phase.generate, Phase.shrink], deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(networks, st.sampled_from([0.3, 0.5]), st.sampled_from(["uniform", "global"]), st.integers(0, 99))
def test_masked_equals_shrunk(drawn, amount, scope, seed):
    torch.manual_seed(seed)
    inputs = torch.randn(2, 3, 6, 6)
    model = Random(*drawn)
    model(inputs)
    model.eval()
    try:
        plan = plan_pruning(model, inputs, amount, scope=scope)
    except UserError as error:
        assume("no group" not in str(error))
        raise
    small = shrink(model, plan).double()
    masked = copy.deepcopy(model)
    mask_(masked, plan)
    with torch.no_grad():
        gap = (masked.double()(inputs.double()) - small(inputs.double())).abs().max()
    assert gap <= 1e-12
    for layer, (_, after) in plan.widths.items():
        module = small.get_submodule(layer)
        assert module.weight.shape[isinstance(module, nn.ConvTranspose2d)] == after
