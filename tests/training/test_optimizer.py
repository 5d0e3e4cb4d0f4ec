import math

import pytest
import torch
from torch import nn

from lighten.errors import UserError
from lighten.training.optimizer import OptimizerSettings


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norms_and_biases_are_not_decayed_and_frozen_parameters_not_trained() -> None:
    net = model()
    net[0].weight.requires_grad_(False)
    groups = OptimizerSettings(weight_decay=0.3).optimizer(net).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay.get(id(p)) for name, p in net.named_parameters()} == {
        "0.weight": None,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.3,
        "3.bias": 0.0,
    }


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_then_falls_to_zero_at_the_end(schedule: str) -> None:
    settings = OptimizerSettings(name="sgd", lr=0.4, warmup=0.2, schedule=schedule)
    built = settings(model(), 50)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(51):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    fall = {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "linear": lambda t: 1 - t,
        "constant": lambda t: 1.0,
    }[schedule]
    expected = [0.4 * (step + 1) / 10 for step in range(10)] + [0.4 * fall(step / 40) for step in range(41)]
    assert rates == pytest.approx(expected)


def test_the_optimizer_is_the_one_named() -> None:
    sgd = OptimizerSettings(name="sgd", momentum=0.8, nesterov=False).optimizer(model())
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, False)
    assert isinstance(OptimizerSettings().optimizer(model()), torch.optim.AdamW)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr": 0.0}, "optimizer.lr=0.0"),
        ({"lr": float("nan")}, "optimizer.lr=nan"),
        ({"weight_decay": -1}, "optimizer.weight_decay=-1"),
        ({"warmup": 1.0}, "optimizer.warmup=1.0"),
        ({"momentum": -0.1}, "optimizer.momentum=-0.1"),
        ({"name": "sgd", "momentum": 0.0}, "optimizer.nesterov"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told) -> None:
    with pytest.raises(UserError, match=told):
        OptimizerSettings(**settings)


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter that takes gradients"):
        OptimizerSettings()(model().requires_grad_(False), 10)
