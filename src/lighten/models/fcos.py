"""A one-stage detector without anchors (Tian et al. 2019, "FCOS"): boxes and classes at each point of a pyramid."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import UserError
from lighten.models.registry import DEEPEST, register_model, whole, wholes
from lighten.models.resnet import BasicBlock

PRIOR = 0.01
"""Of a class at a place, before anything is learned (Lin et al. 2017, "Focal Loss", 4.1)."""
SIDE = 4.0
"""Of a box, in cells of its level, before anything is learned."""
LARGEST = 1024.0
"""Side of a box at most, in cells of its level."""


class Head(nn.Module):
    """What one level of the pyramid says: two branches of convolutions, one for classes and one for boxes.

    Each level has a head of its own: a layer that runs twice has no one range of its inputs in int8, nor a norm that
    is folded into it.

    Args:
        width: channels of the pyramid.
        num_classes: logits of a place.
        depth: convolutions of each branch, before the one that answers.
    """

    def __init__(self, width: int, num_classes: int, depth: int) -> None:
        super().__init__()
        self.classes, self.boxes = (_branch(width, outputs, depth) for outputs in (num_classes, 4))
        with torch.no_grad():
            self.boxes[-1].bias.copy_(torch.tensor([0.0, 0.0, math.log(SIDE), math.log(SIDE)]))
        # added in floating point, so that logits meet boxes as numbers that are not rounded: LiteRT's converter would
        # give what is joined with rounded numbers their range
        self.classes[-1].bias = None
        self.prior = nn.Parameter(torch.full((num_classes, 1, 1), math.log(PRIOR / (1 - PRIOR))))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, width, H, W) to answers (N, H × W, 4 + classes)."""
        return answers(self.boxes(x), self.classes(x) + self.prior)


class FCOS(nn.Module):
    """A ResNet, a feature pyramid on its last stages, and at each of its points a box and logits of classes.

    Args:
        channels: of the input.
        num_classes: logits of a place, each an independent sigmoid.
        widths: channels of the stages; each after the first halves the resolution.
        blocks: of each stage.
        levels: stages at the end that the pyramid reads.
        neck: channels of the pyramid.
        depth: convolutions of each branch of the heads, before the one that answers.
        stem_stride: 2 halves the resolution at once.
    """

    def __init__(
        self, channels: int, num_classes: int, *, widths: Sequence[int], blocks: int, levels: int, neck: int,
        depth: int, stem_stride: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = _layer(channels, widths[0], 3, stem_stride)
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(before, after, 2 if number else 1, "conv"),
                *(BasicBlock(after, after, 1, "conv") for _ in range(blocks - 1)),
            )
            for number, (before, after) in enumerate(pairwise([widths[0], *widths]))
        )
        self.lateral = nn.ModuleList(_layer(width, neck, 1)[:2] for width in widths[-levels:])
        self.neck = nn.ModuleList(_layer(neck, neck, 3) for _ in range(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.heads = nn.ModuleList(Head(neck, num_classes, depth) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to answers (N, places, 4 + classes).

        The first four are a box (centre x, centre y, width, height) as shares of the image's width and height.
        """
        x = self.stem(x)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        levels = [lateral(stage) for lateral, stage in zip(self.lateral, stages[-len(self.lateral) :], strict=True)]
        for fine in reversed(range(len(levels) - 1)):
            above = F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
            levels[fine] = levels[fine] + above
        found = [head(neck(level)) for head, neck, level in zip(self.heads, self.neck, levels, strict=True)]
        return torch.cat(found, 1) if len(found) > 1 else found[0]


def answers(boxes: Tensor, logits: Tensor) -> Tensor:
    """Return what a level says of its places, row by row, as (N, H × W, 4 + classes), in float32 at least.

    Args:
        boxes: (N, 4, H, W): how far the centre of a box is off the centre of its cell, right and down, and the
            logarithms of width and height; all in cells.
        logits: (N, classes, H, W).
    """
    height, width = boxes.shape[2:]
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))  # shares in 16 bits would be off by pixels
    like: Any = {"dtype": boxes.dtype, "device": boxes.device}
    right, down = ((torch.arange(size, **like) + 0.5) for size in (width, height))
    middle = torch.stack([right[None].expand(height, width), down[:, None].expand(height, width)])
    cell = torch.stack([torch.full((1, 1), 1 / size, **like) for size in (width, height)])
    centres = (boxes[:, :2] + middle) * cell
    sides = boxes[:, 2:].clamp(max=math.log(LARGEST)).exp() * cell
    return torch.cat([centres, sides, logits], 1).flatten(2).transpose(1, 2)


def _branch(width: int, outputs: int, depth: int) -> Any:
    last = nn.Conv2d(width, outputs, 3, padding=1)
    nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(*(_layer(width, width, 3) for _ in range(depth)), last)


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


@register_model("fcos")
def fcos(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    widths: Sequence[int] = (32, 64, 128),
    blocks: int = 1,
    levels: int = 2,
    neck: int = 64,
    depth: int = 1,
    stem_stride: int = 2,
) -> FCOS:
    """Build an :class:`FCOS`.

    Raises:
        UserError: if an option is out of range, or the image is too small for as many stages.
    """
    widths = wholes("fcos", "widths", widths)
    if stem_stride not in (1, 2):
        raise UserError(f"model fcos: stem_stride={stem_stride!r}, expected 1 or 2")
    side, least = min(input_shape[1:]), stem_stride * 2 ** (len(widths) - 1)
    if side < least:
        raise UserError(
            f"model fcos: {len(widths)} widths and stem_stride={stem_stride} halve a side of {side} pixels to nothing; "
            "give fewer widths"
        )
    return FCOS(
        input_shape[0],
        num_classes,
        widths=widths,
        blocks=whole("fcos", "blocks", blocks, most=DEEPEST),
        levels=whole("fcos", "levels", levels, most=len(widths)),
        neck=whole("fcos", "neck", neck),
        depth=whole("fcos", "depth", depth, least=0, most=DEEPEST),
        stem_stride=stem_stride,
    )
