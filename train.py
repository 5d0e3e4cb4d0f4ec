"""Train by recipe: ``python train.py recipe=distil_cnn``, or several in a row: ``python train.py -m recipe=a,b``."""

import sys
from pathlib import Path

from lighten.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent / "recipes"))
