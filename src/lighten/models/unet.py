"""A U-Net (Ronneberger et al. 2015): a mask or a picture of the size of its input."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import UserError, did_you_mean
from lighten.models.registry import MAX_OPTION, register_model, whole

UPSAMPLING = ("nearest", "transposed")
DEEPEST = 12
"""Halvings; an image of 4096 pixels a side has become one pixel."""


class UNet(nn.Module):
    """Blocks of two 3×3 convolutions with batch norm and ReLU, halved ``depth`` times and doubled again.

    Level l has ``width`` × 2**l channels; on the way up each level also reads what it had on the way down. Inputs whose
    sides are no multiple of 2**``depth`` are filled up with zeros below and to the right, and the answer is cropped.

    Args:
        channels: of the input.
        outputs: channels of the answer: classes of a mask, or channels of a picture.
        depth: halvings.
        width: channels of the first level.
        upsample: ``"nearest"``, or ``"transposed"`` for a transposed convolution of 2×2.
        residual: add the input to the answer, which so is the change of a picture.
    """

    def __init__(self, channels: int, outputs: int, *, depth: int, width: int, upsample: str, residual: bool) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.multiple = 1 << depth
        self.residual = residual
        self.start = _block(channels, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _block(*pair)) for pair in pairwise(widths))
        self.enlarge, self.up = nn.ModuleList(), nn.ModuleList()
        for narrow, wide in reversed(list(pairwise(widths))):
            transposed = upsample == "transposed"
            self.enlarge.append(nn.ConvTranspose2d(wide, narrow, 2, 2) if transposed else nn.Upsample(scale_factor=2))
            self.up.append(_block(narrow + (narrow if transposed else wide), narrow))
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to answers (N, outputs, H, W)."""
        height, width = x.shape[2:]
        below, right = -height % self.multiple, -width % self.multiple
        out = self.start(F.pad(x, (0, right, 0, below)) if below or right else x)
        levels = [out]
        for block in self.down:
            out = block(out)
            levels.append(out)
        for enlarge, block, kept in zip(self.enlarge, self.up, reversed(levels[:-1]), strict=True):
            out = block(torch.cat([kept, enlarge(out)], 1))
        out = self.head(out)
        if below or right:
            out = out[:, :, :height, :width]
        return x + out if self.residual else out


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


@register_model("unet")
def unet(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    depth: int = 3,
    width: int = 16,
    upsample: str = "nearest",
    residual: bool = False,
) -> UNet:
    """Build a :class:`UNet`.

    Raises:
        UserError: if an option is out of range, or ``residual`` and the answer has other channels than the input.
    """
    if upsample not in UPSAMPLING:
        raise UserError(f"model unet: upsample={upsample!r}; {did_you_mean(str(upsample), UPSAMPLING)}")
    depth = whole("unet", "depth", depth, most=DEEPEST)
    width = whole("unet", "width", width, most=MAX_OPTION >> depth)
    if residual and num_classes != input_shape[0]:
        raise UserError(
            f"model unet: residual adds the input of {input_shape[0]} channels to an answer of {num_classes}; "
            "leave residual out, or answer as many"
        )
    return UNet(input_shape[0], num_classes, depth=depth, width=width, upsample=upsample, residual=residual)
