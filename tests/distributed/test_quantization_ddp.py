"""Quantization-aware training on two ranks is that on one rank with the same global batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run_fits

SCRIPT = Path(__file__).with_name("quantization_fit.py")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return what fits ended with, by rule and number of ranks."""
    folder = tmp_path_factory.mktemp("ddp")
    for ranks in (1, 2):
        run_fits(SCRIPT, folder, ranks)
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
