"""Who reads and keeps a tensor is seen, so that quantization does not change what they get."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from quantization_nets import lived_in, relative_error
from torch import nn

from lighten.quantization import calibrate_, convert, quantize_
from lighten.quantization.activation_quantizers import quantizers_of


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(16, 1, 8, 8) + 1


@dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor


class Keeping(nn.Module):
    """Lets the output of its convolution or of its norm out, in one way or another."""

    def __init__(self, how, what):
        super().__init__()
        self.a, self.norm, self.b, self.head = (
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3),
            nn.Linear(8, 3),
        )
        self.how, self.what, self.seen = how, what, {}

    def forward(self, x):
        a = self.a(x)
        n = self.norm(a)
        z = self.head(F.relu(self.b(F.relu(n))).mean((2, 3)))
        features = a if self.what == "convolution" else n
        if self.how == "dataclass":
            return Output(z, features)
        if self.how == "tuple":
            return z, features
        if self.how == "attribute":
            self.features = features
        elif self.how == "dict":
            self.seen["features"] = features
        return z

    def features_of(self, x):
        output = self(x)
        if self.how == "attribute":
            return self.features
        return {"tuple": lambda: output[1], "dataclass": lambda: output.features}.get(
            self.how, lambda: self.seen["features"]
        )()


@pytest.mark.parametrize("what", ["convolution", "norm"])
@pytest.mark.parametrize("how", ["tuple", "dataclass", "attribute", "dict"])
def test_features_that_somebody_keeps_stay_what_they_are(how, what, x):
    model = lived_in(Keeping(how, what))
    expected = model.features_of(x).detach()
    assert (expected < 0).any()
    calibrate_(quantize_(model, example_input=x[:2]), [x])
    assert relative_error(model.features_of(x), expected) < 0.02


def test_a_layer_whose_weight_is_read_elsewhere_stays_in_floating_point():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, ids):
            return F.linear(F.relu(self.a(self.table(ids))).mean(1), self.table.weight)

    ids = torch.randint(0, 20, (8, 5))
    model = calibrate_(quantize_(Tied(), example_input=ids), [ids])
    assert quantizers_of(model).left == {"table": "its weight is read elsewhere too, in Tied"}
    assert torch.equal(convert(model)(ids), model(ids))


def test_looking_leaves_the_model_as_it_is(x):
    model = Keeping("dict", "norm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize_(model, example_input=x[:2])
    assert model.training
    assert model.seen == {}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_relu_of_training_alone_is_no_part_of_the_layer_before(x):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.a = nn.Conv2d(x.shape[1], 8, 3), nn.Conv2d(x.shape[1], 4, 3)

        def forward(self, x):
            aside = self.aside(x)
            if self.training:
                self.low = F.relu(aside).min().detach()
            return self.a(x)

    torch.manual_seed(0)
    model = Aside()
    expected = model.eval()(x)
    calibrate_(quantize_(model, example_input=x[:2]), [x])
    assert relative_error(model(x), expected) < 0.02
    assert model.train()(x).isfinite().all()
