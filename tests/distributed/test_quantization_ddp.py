"""Quantization-aware training on two ranks is that on one rank with the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("quantization_fit.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return what fits ended with, by rule and number of ranks."""
    folder = tmp_path_factory.mktemp("ddp")
    for ranks in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), str(ranks)],
            env={**os.environ, **own}, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize("rule", ["moving_average", "mse", "lsq"])
def test_two_ranks_equal_one(ended, rule):
    one, two = ended[f"{rule}-1"], ended[f"{rule}-2"]
    assert one["ranges"][0] == two["ranges"][0]  # of the same weights: to the last bit
    assert len(one["ranges"]) == len(two["ranges"]) == 12
    for ours, theirs in zip(two["ranges"], one["ranges"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert one["ranges"][0] != one["ranges"][-1]
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name], weight, rtol=0, atol=1e-6, err_msg=name)
