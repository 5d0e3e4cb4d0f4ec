"""A call of a function keeps its quantizers, whatever else a forward calls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import relative_error, trained_through_int8
from torch import nn

from lighten.quantization import calibrate_, quantize_
from lighten.quantization.activation_quantizers import quantizers_of


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(16, 1, 8, 8) + 1


class Noisy(nn.Module):
    """Adds in training what evaluation lacks, and a branch of a hundred times the magnitude behind."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        if self.training:
            x = x + 0.01 * torch.randn_like(x)
        a = F.relu(self.a(x))
        return self.head(F.relu(self.c(F.relu(100 * self.b(a) + a))).mean((2, 3)))


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class SharedAdd(nn.Module):
    """One module without a layer, called at two places of unequal magnitude."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (1, 8, 8))
        self.add, self.head = Add(), nn.Linear(8, 3)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = self.add(100 * self.b(a), a)
        return self.head(self.add(self.c(b), b).mean((2, 3)))


@pytest.mark.parametrize("build", [Noisy, SharedAdd])
def test_calls_of_training_alone_shift_no_other(build, x):
    torch.manual_seed(0)
    model = build().eval()
    expected = model(x)
    quantized = trained_through_int8(quantize_(model, example_input=x[:2]), x)
    assert not quantizers_of(quantized).unknown()
    assert relative_error(quantized(x), expected) < 0.05


def test_a_relu_of_training_alone_is_computed(x):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.side, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            a = F.relu(self.a(x))
            if self.training:
                self.low = F.relu(self.side(a)).detach().min()
            return self.head(F.relu(self.b(a)).mean((2, 3)))

    model = calibrate_(quantize_(Auxiliary(), example_input=x[:2]), [x]).train()
    model(x)
    assert model.low == 0


def test_a_copy_knows_its_calls_too(x):
    torch.manual_seed(0)
    model = trained_through_int8(quantize_(Noisy(), example_input=x[:2]), x)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_arguments_by_name_are_seen_as_those_by_position(x):
    class Net(nn.Module):
        def __init__(self, named):
            super().__init__()
            self.a, self.head, self.named = nn.Conv2d(1, 2, 3), nn.Linear(72, 3), named

        def forward(self, x):
            x = F.relu(input=self.a(x)) if self.named else F.relu(self.a(x))
            x = torch.cat(tensors=[x, x]) if self.named else torch.cat([x, x])
            x = torch.add(x, other=x) if self.named else torch.add(x, x)
            return self.head(torch.flatten(input=x, start_dim=1) if self.named else torch.flatten(x, 1))

    torch.manual_seed(0)
    plain = Net(named=False)
    named = Net(named=True)
    named.load_state_dict(plain.state_dict())
    models = [calibrate_(quantize_(model, example_input=x[:2]), [x]) for model in (plain, named)]
    assert quantizers_of(plain).names == quantizers_of(named).names
    assert torch.equal(models[0](x), models[1](x))
