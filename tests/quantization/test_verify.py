"""Modules that do more than their base class keep all that they do."""

import pytest
import torch
from quantization_nets import lived_in, relative_error
from torch import nn

from lighten.quantization import calibrate_, quantize_
from lighten.quantization.verify import failing


class NormAct(nn.BatchNorm2d):
    """A norm that applies its activation too."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class Shifted(nn.BatchNorm2d):
    """A norm that is called in another way."""

    def __call__(self, x):
        return super().__call__(x) + 1


def negated(norm):
    """Return ``norm`` with a forward of its own."""
    norm.forward = lambda x: -nn.BatchNorm2d.forward(norm, x)
    return norm


@pytest.mark.parametrize("build", [NormAct, Shifted, lambda width: negated(nn.BatchNorm2d(width))])
@pytest.mark.parametrize("training", [False, True])
def test_a_norm_that_does_more_keeps_what_it_does(build, training):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    model = lived_in(
        nn.Sequential(nn.Conv2d(3, 8, 3), build(8), nn.Conv2d(8, 8, 3), build(8), nn.Flatten(), nn.Linear(128, 4))
    ).train(training)
    expected = model(x)
    assert torch.equal(quantize_(model, example_input=x[:2])(x), expected)
    model.eval()
    expected = model(x)
    assert relative_error(calibrate_(model, [x])(x), expected) < 0.05


@pytest.mark.parametrize("bad", [{3}, {0, 5}, {6}, set(), set(range(7))])
def test_what_cannot_stay_is_found_among_all(bad):
    assert set(failing(range(7), lambda some: not bad & set(some))) == bad
