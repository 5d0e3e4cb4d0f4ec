"""Transforms along places: channels that lie along other dimensions pass through them, cut against masked."""

import pytest
import torch
import torch.nn.functional as F
from pruning_nets import assert_right, net
from torch import nn

from lighten.errors import UserError
from lighten.pruning import plan_pruning


def between(body, width=8, **layers):
    """A convolution, what ``body`` does to its output, and a layer that reads it."""
    torch.manual_seed(0)
    return net(
        lambda s, x: s.head(body(s, F.relu(s.a(x)))), a=nn.Conv2d(3, 8, 3), head=nn.Conv2d(width, 2, 1), **layers
    )


class Filter(nn.Module):
    """A learned filter of frequencies, as GFNet's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6, 4, 2))

    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.weight), s=x.shape[-2:])


BODIES = {
    "fft and back": lambda s, x: torch.fft.ifft(torch.fft.fft(x, dim=2), dim=2).real,
    "spectrum": lambda s, x: torch.fft.rfft(x).abs(),
    "as real": lambda s, x: torch.view_as_real(torch.fft.fftn(x, dim=(-2, -1))).sum(-1),
    "parts": lambda s, x: torch.polar(x, x).imag + torch.complex(x, x).conj().real,
    "unfold and fold": lambda s, x: F.fold(F.relu(F.unfold(x, 3, padding=1)), x.shape[-2:], (3, 3), padding=1),
    "unfold": lambda s, x: F.unfold(x, (2, 3)).unflatten(1, (x.shape[1], 6)).amax(2).unsqueeze(-1),
}


@pytest.mark.filterwarnings("ignore:.*Casting complex")
@pytest.mark.parametrize("name", BODIES)
def test_channels_pass_through(name):
    assert assert_right(between(BODIES[name]), torch.randn(2, 3, 8, 8)).widths["a"] == (8, 4)


def test_a_filter_of_frequencies_has_channels():
    model = between(lambda s, x: s.f(x), f=Filter())
    assert assert_right(model, torch.randn(2, 3, 8, 8)).widths["a"] == (8, 4)


def test_windows_of_a_layer_over_windows():
    model = between(lambda s, x: s.b(F.unfold(x, 3).transpose(1, 2)).mT.unsqueeze(-1), 6, b=nn.Linear(72, 6))
    plan = assert_right(model, torch.randn(2, 3, 8, 8))
    assert {name: plan.widths[name] for name in "ab"} == {"a": (8, 4), "b": (6, 3)}


@pytest.mark.parametrize("name", ["fft", "fft2"])
def test_channels_that_are_transformed_stay(name):
    model = between(lambda s, x: getattr(torch.fft, name)(x.movedim(1, -1)).real.movedim(-1, 1))
    with pytest.raises(UserError, match=rf"a goes through fft_{name} "):
        plan_pruning(model, torch.randn(2, 3, 8, 8), 0.5)
