"""Train by recipe: ``python train.py recipe=distil_cnn``, or several in a row: ``python train.py -m recipe=a,b``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    from lighten.training.signals import hold

    hold()  # a scheduler's signal waits until the run can answer it

    from lighten.cli.main import main

    sys.exit(main(sys.argv[1:], recipes=Path(__file__).parent / "recipes", default="train"))
