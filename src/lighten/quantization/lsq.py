"""Learned step size quantization (LSQ): ranges that follow the gradient of the loss."""

import torch
from torch import Tensor

LEARNING_RATE, BETAS = 0.01, (0.9, 0.999)
"""Of the learned step sizes: one percent a step at most."""


def learn_(low: Tensor, high: Tensor, moments: Tensor, gradient: Tensor) -> None:
    """Move ranges by one step of Adam on the logarithm of their step size, in place; zero points stay.

    In the logarithm one rate serves all magnitudes (Jain et al. 2020, "Trained Quantization Thresholds", section 4).
    Infinite gradients, of a loss that was scaled too high, are left out.
    """
    first, second, steps = moments
    usable = gradient.isfinite()
    gradient = torch.where(usable, gradient, 0.0)
    steps.add_(usable)
    first.copy_(torch.where(usable, torch.lerp(gradient, first, BETAS[0]), first))
    second.copy_(torch.where(usable, torch.lerp(gradient.square(), second, BETAS[1]), second))
    steps_done = steps.clamp_min(1)
    mean, square = first / (1 - BETAS[0] ** steps_done), second / (1 - BETAS[1] ** steps_done)
    factor = torch.exp(-LEARNING_RATE * mean / (square.sqrt() + 1e-12))
    low.mul_(factor)
    high.mul_(factor)
