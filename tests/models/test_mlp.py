import pytest
import torch
from torch import nn

from lighten.models import build_model


@pytest.mark.parametrize("batch_norm", [False, True])
def test_parameters_and_layers(batch_norm):
    model = build_model("mlp", num_classes=4, input_shape=(1, 3, 5), hidden=[6, 7], batch_norm=batch_norm)
    weights = 15 * 6 + 6 * 7 + 7 * 4
    assert sum(p.numel() for p in model.parameters()) == weights + (2 if batch_norm else 1) * (6 + 7) + 4
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model.modules()) == (2 if batch_norm else 0)
    assert model(torch.randn(3, 1, 3, 5)).shape == (3, 4)


def test_it_is_affine_relu_affine():
    model = build_model("mlp", num_classes=4, input_shape=(1, 2, 2), hidden=[6])
    (w1, b1), (w2, b2) = [(m.weight, m.bias) for m in model.modules() if isinstance(m, nn.Linear)]
    x = torch.randn(3, 1, 2, 2)
    assert torch.allclose(model(x), (x.reshape(3, 4) @ w1.T + b1).clamp(min=0) @ w2.T + b2, atol=1e-6)
