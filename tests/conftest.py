"""Settings for all tests: few threads, no network, tests' helpers on the path, GPU kernels interpreted if need be."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from hypothesis import settings

settings.load_profile("default")  # in CI it would draw the same examples each time
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
