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


class Sorts(nn.Module):
    """Puts out its places by scores that differ by less than rounding, so that a folded norm changes their order."""

    def __init__(self, *, single: bool = False) -> None:
        super().__init__()
        self.single = single
        self.body = nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        places = self.body(x).mT
        if self.training and self.single:
            places = places @ torch.eye(8)  # cannot run in float64
        order = (places.softmax(-1).sum(-1) + 1e-8 * places[..., 0]).argsort(-1)
        return self.head(places.gather(1, order[..., None].expand_as(places)))


@pytest.mark.parametrize("single", [False, True])
def test_rounding_that_decides_what_is_chosen_keeps_no_layer_from_int8(single):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32)
    model = lived_in(Sorts(single=single))
    quantized = quantize_(model, example_input=x)
    assert not {"body.0", "body.3", "head"} & set(quantized.activation_ranges.left)
