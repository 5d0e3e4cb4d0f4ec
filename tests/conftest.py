"""Settings for all tests: few threads, no network, tests' own helpers on the path."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
sys.path.insert(0, str(Path(__file__).parent))

import torch

torch.set_num_threads(2)
