"""ResNets for small images: three stages of basic blocks (He et al. 2016, "Deep Residual Learning", 4.2)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean
from lighten.models.registry import DEEPEST, register_model, whole

SHORTCUTS = ("conv", "pad")


class PadShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, new channels filled with zeros; no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + new_channels, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "pad":
                self.shortcut = PadShortcut(outputs - inputs, stride)
            else:
                conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of ``width``, 2 × and 4 × ``width`` channels, mean over pixels, linear classifier.

    Weights start as in He et al. 2015 (normal, fan out); the classifier keeps PyTorch's default.

    Args:
        channels: of the input.
        num_classes: size of the logits.
        blocks: per stage.
        width: channels of the first stage.
        shortcut: where the shape changes, ``"conv"`` (1×1 with batch norm) or ``"pad"``.
        stem_stride: 2 halves the resolution at once.
    """

    def __init__(
        self, channels: int, num_classes: int, *, blocks: int, width: int, shortcut: str, stem_stride: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = _stage(width, width, blocks, 1, shortcut)
        self.stage2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.stage3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.head = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def resnet(depth: int) -> Callable[..., ResNet]:
    """Return the builder of the ResNet with ``depth`` = 6 × blocks + 2 layers."""
    name = f"resnet{depth}"

    def build(
        *,
        num_classes: int,
        input_shape: tuple[int, int, int],
        width: int = 16,
        shortcut: str = "conv",
        stem_stride: int = 1,
        blocks: int | None = None,
    ) -> ResNet:
        if shortcut not in SHORTCUTS:
            raise UserError(f"model {name}: shortcut={shortcut!r}; {did_you_mean(str(shortcut), SHORTCUTS)}")
        if stem_stride not in (1, 2):
            raise UserError(f"model {name}: stem_stride={stem_stride!r}, expected 1 or 2")
        return ResNet(
            input_shape[0],
            num_classes,
            blocks=(depth - 2) // 6 if blocks is None else whole(name, "blocks", blocks, most=DEEPEST),
            width=whole(name, "width", width),
            shortcut=shortcut,
            stem_stride=stem_stride,
        )

    return build


for _depth in (20, 32, 44, 56, 110):
    register_model(f"resnet{_depth}")(resnet(_depth))
