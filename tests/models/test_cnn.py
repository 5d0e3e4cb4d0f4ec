import torch

from lighten.models import build_model


def test_parameters_and_shape():
    model = build_model("cnn", num_classes=10, input_shape=(3, 16, 16), widths=[8, 12], depth=2)
    convs = 9 * (3 * 8 + 8 * 8 + 8 * 12 + 12 * 12)
    norms = 2 * (8 + 8 + 12 + 12)
    assert sum(p.numel() for p in model.parameters()) == convs + norms + (12 * 10 + 10)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_each_further_stage_halves_the_side():
    model = build_model("cnn", num_classes=10, input_shape=(1, 28, 28), widths=[2, 3, 4])
    assert model.features(torch.randn(1, 1, 28, 28)).shape == (1, 4, 7, 7)
