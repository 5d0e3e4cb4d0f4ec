"""Tiny networks, each with something that ties channels together."""

import importlib
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from foreign import foreign
from torch import nn

from lighten.pruning import plan_pruning, shrink


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two blocks; the second halves the resolution and doubles the width, by a 1x1 convolution or by padding."""

    def __init__(self, shortcut):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.a1, self.a2 = conv_bn(8, 8), conv_bn(8, 8)
        self.b1, self.b2 = conv_bn(8, 16, stride=2), conv_bn(16, 16)
        self.shortcut = conv_bn(8, 16, kernel=1, stride=2) if shortcut == "conv" else None
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.a1(x))), inplace=True)
        side = self.shortcut(x) if self.shortcut is not None else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(side + self.b2(F.relu(self.b1(x))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Each layer sees all earlier ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 6), conv_bn(6, 4), conv_bn(10, 5)
        self.head = nn.Conv2d(15, 3, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.cat([x, F.relu(self.b(x))], 1)
        x = torch.cat([F.max_pool2d(x, 3, 1, 1), torch.tanh(self.c(x))], 1)
        return self.head(x)


class Mobile(nn.Module):
    """Inverted residual with a depthwise convolution and squeeze-and-excite."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand = conv_bn(3, 6), conv_bn(6, 12, 1)
        self.depthwise, self.project = conv_bn(12, 12, groups=12), conv_bn(12, 6, 1)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y)).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in two groups, and a depthwise one that doubles the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv_bn(8, 12, groups=2)
        self.c = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x):
        return self.head(F.gelu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class Flat(nn.Module):
    """Convolution, pooling, flattening, linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.PReLU(6)
        self.a, self.head = nn.Linear(6 * 4 * 4, 10), nn.Linear(10, 4)

    def forward(self, x):
        x = F.avg_pool2d(self.act(self.conv(x)), 2)
        return self.head(F.dropout(F.relu(self.a(torch.flatten(x, 1))), 0.5, self.training))


class Gated(nn.Module):
    """A split whose halves meet again, a slice that only one layer reads, a scale of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.b, self.head = nn.Conv2d(6, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, x):
        value, gate = self.a(x).chunk(2, 1)
        return self.head(F.glu(torch.cat([self.b(value * gate.sigmoid() * self.scale)] * 2, 1), 1))


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with skips."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = conv_bn(3, 6), conv_bn(6, 10, stride=2)
        self.up = nn.ConvTranspose2d(10, 8, 2, 2)
        self.mix = conv_bn(6 + 8 + 10, 7)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        skip = F.relu(self.down(x))
        x = F.relu(self.deep(skip))
        up = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.head(F.relu(self.mix(torch.cat([skip, self.up(x), up], 1))))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = conv_bn(3, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.head(F.relu(self.twice(F.relu(self.twice(self.stem(x))))))


class Reshuffled(nn.Module):
    """Channels that turn into pixels, four into one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(F.relu(self.b(F.pixel_shuffle(F.pad(self.a(x), (1, 1, 1, 1)), 2))))


class Block(nn.Module):
    """A transformer block: attention, feed-forward, layer norms."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)[..., :1].repeat(1, 1, 8)
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(attended))
        return self.head(self.norm2(x + self.down(F.gelu(self.up(x)))).mean(1))


NETWORKS = {
    "residual": lambda: Residual("conv"),
    "residual-pad": lambda: Residual("pad"),
    "concat": Concat,
    "mobile": Mobile,
    "grouped": Grouped,
    "flat": Flat,
    "gated": Gated,
    "unet": UNet,
    "shared": Shared,
    "reshuffled": Reshuffled,
    "transformer": Block,
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)
    ),
}


def settle(model):
    """Give batch norms statistics and affines that differ from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.25
    return model.eval()


def build_network(name):
    torch.manual_seed(0)
    return settle(NETWORKS[name]())


def draw_images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@lru_cache
def halve(name):
    model = build_network(name)
    plan = plan_pruning(model, draw_images(), 0.5)
    return model, plan, shrink(model, plan)


@pytest.fixture
def build():
    """Build a network by name, the same every time."""
    return build_network


@pytest.fixture
def images():
    """A batch that every network takes."""
    return draw_images()


@pytest.fixture(params=NETWORKS)
def network(request):
    """Each network in turn."""
    return build_network(request.param)


@pytest.fixture(params=NETWORKS)
def halved(request):
    """Each network in turn, its plan at one half, and what is left; not to be changed."""
    return halve(request.param)


@pytest.fixture(scope="module")
def torchvision():
    """The library, out of sight of the tests of other files."""
    with foreign():
        yield importlib.import_module("torchvision")
