"""Small networks that meet every placement rule."""

import torch
import torch.nn.functional as F
from torch import nn

from lighten.quantization.activation_quantizers import Stage, quantizers_of


class Residual(nn.Module):
    """Conv-norm-relu, a residual add with a functional ReLU, max pooling, average pooling, linear."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x * scale)))
        x = F.relu(x + self.norm2(self.conv2(x)))
        x = F.max_pool2d(x, 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def lived_in(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and parameters that are not those of birth."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def trained_through_int8(model: nn.Module, x: torch.Tensor, *, steps: int = 4, seed: int = 0) -> nn.Module:
    """Do with a quantized model what ``Quantize`` does in a fit, but for the optimizer; return it in eval mode."""
    quantizers = quantizers_of(model.train())
    for step in range(steps):
        torch.manual_seed(seed + step)
        quantizers.stage, quantizers.observing = max(quantizers.stage, Stage.OBSERVE), True
        model(x)
        quantizers.update()
        quantizers.stage, quantizers.observing = Stage.ON, False
    return model.eval()


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference, as a share of the norm of ``expected``."""
    return float((ours.detach() - expected.detach()).norm() / expected.detach().norm())


def per_channel(weight, axis):
    others = [d for d in range(weight.dim()) if d != axis]
    scale = weight.abs().amax(others, keepdim=True) / 63
    return torch.round(weight / scale) * scale
