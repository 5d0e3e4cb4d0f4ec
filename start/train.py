"""Your own networks by name, and all of lighten: ``python train.py recipe=mine``, ``python train.py measure RUN``."""

import sys
from pathlib import Path

from lighten import register_model
from lighten.training.signals import hold

if __name__ == "__main__":
    hold()  # a scheduler's signal waits until the run can answer it


@register_model("mine")
def mine(*, num_classes, input_shape, width=16):
    """Return a network of your own, with fresh weights; a recipe says ``student: mine, student_options: {width: 32}``.

    Args:
        num_classes: how many numbers it answers.
        input_shape: (channels, height, width) of an image.
        width: an option of its own; add others.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


if __name__ == "__main__":
    from lighten.cli.main import main

    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parent / "recipes", default="train"))
