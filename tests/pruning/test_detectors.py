"""Detectors of ``transformers``, from small configs: what is cut out of them is what masking leaves of them."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lighten import mask_, plan_pruning, shrink
from lighten.utils.clone import clone

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
networks = importlib.import_module("detector_networks")

pytestmark = pytest.mark.slow

CUT = {
    "rt_detr": 0.7, "rt_detr_v2": 0.7, "d_fine": 0.65, "rf_detr": 0.6, "detr": 0.6, "conditional_detr": 0.6,
    "deformable_detr": 0.6, "yolos": 0.6, "vitpose": 0.6,
}  # fmt: skip
"""The share of multiply-accumulates that goes with half of all channels, at least."""
STAY = {"d_fine": 11, "rf_detr": 1}
"""How many layers cannot be cut though their channels are known: those of hidden widths."""


@pytest.mark.parametrize("family", CUT)
def test_masked_is_cut(family):
    model, x = networks.detector(family), networks.images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most families have no words for all widths
        plan = plan_pruning(model, x, 0.5)
        small = shrink(model, plan).eval()
    assert plan.saved["macs"] > CUT[family]
    stay = [layer for layer, why in plan.frozen.items() if "cannot be cut" in why and "stack expects" not in why]
    assert len(stay) == STAY.get(family, 0)
    masked = clone(model)
    mask_(masked, plan)
    with torch.no_grad():
        assert networks.apart(masked(x), small(x)) <= 1e-5
        assert networks.apart(masked.double()(x.double()), small.double()(x.double())) <= 1e-10
