"""A plain CNN: stages of convolution, batch norm and ReLU, halved in between."""

from collections.abc import Sequence

from torch import Tensor, nn

from lighten.errors import UserError
from lighten.models.registry import DEEPEST, register_model, whole, wholes


class CNN(nn.Module):
    """Stages of ``depth`` × (3×3 convolution, batch norm, ReLU), max pooling between, a linear classifier.

    Args:
        channels: of the input.
        num_classes: size of the logits.
        widths: channels of each stage.
        depth: convolutions per stage.
    """

    def __init__(self, channels: int, num_classes: int, *, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.head(self.pool(self.features(x)).flatten(1))


@register_model("cnn")
def cnn(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    widths: Sequence[int] = (32, 64, 128),
    depth: int = 1,
) -> CNN:
    """Build a :class:`CNN`.

    Raises:
        UserError: if an option is out of range, or the image is too small for as many stages.
    """
    widths = wholes("cnn", "widths", widths)
    side = min(input_shape[1:])
    if side < 2 ** (len(widths) - 1):
        raise UserError(f"model cnn: {len(widths)} widths halve a side of {side} pixels to nothing; give fewer widths")
    return CNN(input_shape[0], num_classes, widths=widths, depth=whole("cnn", "depth", depth, most=DEEPEST))
